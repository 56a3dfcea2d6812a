"""The HTTP server on a socket: the client gets its answer, whatever it sends."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from starlette.types import Receive, Scope, Send

from infra import web


async def app(scope: Scope, _: Receive, send: Send) -> None:
    """Refuse a body without reading it; else respond with the number of headers."""
    refused = scope["method"] == "POST"
    body = b"refused" if refused else str(len(scope["headers"])).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 413 if refused else 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
async def port() -> AsyncIterator[int]:
    listener = web.listen("127.0.0.1", 0)
    serving = asyncio.create_task(web.serve(app, listener, grace_s=1))
    yield listener.getsockname()[1]
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving


@asynccontextmanager
async def connected(port: int, sent: bytes = b"") -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def send(writer: asyncio.StreamWriter, chunk: bytes, times: int) -> None:
    """Send as clients do that send all of a request before they read."""
    for _ in range(times):
        writer.write(chunk)
        await writer.drain()


async def answer(reader: asyncio.StreamReader) -> tuple[int, str]:
    """Return the status and the body of the next response."""
    async with asyncio.timeout(30):
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(re.findall(rb"content-length: (\d+)", head)[0])
        return int(head.split()[1]), (await reader.readexactly(size)).decode()


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_refusal_before_the_body_was_read_arrives_and_the_connection_goes_on(port: int, chunked: bool) -> None:
    chunk = b"x" * 1_000_000
    framing = b"transfer-encoding: chunked" if chunked else b"content-length: 60000000"
    async with connected(port, b"POST / HTTP/1.1\r\nhost: a\r\n" + framing + b"\r\n\r\n") as (reader, writer):
        await send(writer, b"%x\r\n%s\r\n" % (len(chunk), chunk) if chunked else chunk, 60)
        writer.write((b"0\r\n\r\n" if chunked else b"") + b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        assert await answer(reader) == (413, "refused")
        assert await answer(reader) == (200, "1")


async def test_a_body_that_does_not_end_is_not_read_for_ever(port: int) -> None:
    chunk = b"x" * (1 << 20)
    head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999\r\n\r\n"
    async with connected(port, head) as (_, writer):
        with pytest.raises(ConnectionError):
            await send(writer, chunk, 2 * web.MAX_DISCARDED // len(chunk))


@pytest.mark.parametrize(
    ("head", "chunk"),
    [
        (b"GET / HTTP/1.1\r\nhost: a\r\ntraceparent: ", b"x" * 65_536),
        (b"GET /", b"x" * 65_536),
        (b"GET / HTTP/1.1\r\nhost: a\r\n", b"a: b\r\n" * 10_000),
        (b"GET / HTTP/1.1\r\n", b"x" * 65_536),
    ],
)
async def test_a_request_line_and_headers_of_megabytes_are_refused(port: int, head: bytes, chunk: bytes) -> None:
    async with connected(port, head) as (reader, writer):
        await send(writer, chunk, 100)
        status, text = await answer(reader)
    assert (status, "larger than 64 KiB" in text) == (431, True)


async def test_thousands_of_small_headers_are_served(port: int) -> None:
    headers = b"".join(b"a%d: b\r\n" % i for i in range(6_000))
    async with connected(port, b"GET / HTTP/1.1\r\nhost: a\r\n" + headers + b"\r\n") as (reader, _):
        assert await answer(reader) == (200, "6001")


async def test_a_request_that_follows_a_body_in_one_packet_is_served(port: int) -> None:
    first = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 200000\r\n\r\n" + b"x" * 200_000
    second = b"GET / HTTP/1.1\r\nhost: a\r\nb: " + b"c" * 60_000 + b"\r\n\r\n"
    async with connected(port, first + second) as (reader, _):
        assert await answer(reader) == (413, "refused")
        assert await answer(reader) == (200, "2")


@pytest.mark.parametrize("trailer", [b"a: b\r\n", b"x"], ids=["many", "one without an end"])
async def test_trailers_without_end_are_cut_off(port: int, trailer: bytes) -> None:
    head = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n"
    async with connected(port, head + (b"" if trailer.endswith(b"\n") else b"long: ")) as (reader, writer):
        assert await answer(reader) == (413, "refused")
        with pytest.raises(ConnectionError):  # noqa: PT012 - the server closes while this goes on
            async with asyncio.timeout(60):
                while True:
                    await send(writer, trailer * 20_000, 10)


async def test_a_trailer_is_no_header(port: int) -> None:
    request = b"GET / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\nauthorization: Bearer x\r\n\r\n"
    async with connected(port, request) as (reader, _):
        assert await answer(reader) == (200, "2")
