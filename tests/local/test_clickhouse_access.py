"""The embedded ClickHouse server serves its users only, and refuses as clickhouse-server does."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from local.clickhouse_access import READER, USER, refusal, uses_local_files
from local.clickhouse_server import app

PASSWORD = "p:ü s"
PASSWORDS = {USER: PASSWORD, READER: "another", "none": ""}


Get = Callable[..., Awaitable[httpx.Response]]


@pytest.fixture
async def get() -> AsyncIterator[Get]:
    async def query(request: Request) -> Response:
        return refusal(request, PASSWORDS) or Response("1\n")

    transport = httpx.ASGITransport(Starlette(routes=[Route("/", query)]))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        yield partial(client.get, "/")


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def refused(response: httpx.Response) -> bool:
    code = response.headers.get("X-ClickHouse-Exception-Code")
    assert (response.status_code, code) in {(200, None), (403, "516")}
    assert (code is None) == (response.text == "1\n")
    assert code is None or response.text.startswith("Code: 516. DB::Exception: ")
    assert PASSWORD not in response.text
    return code is not None


async def test_the_user_is_accepted_in_each_of_the_three_ways(get: Get) -> None:
    assert not refused(await get(headers=basic(USER, PASSWORD)))
    assert not refused(await get(params={"user": USER, "password": PASSWORD}))
    key = PASSWORD.encode()
    assert not refused(await get(headers=[(b"X-ClickHouse-User", USER.encode()), (b"X-ClickHouse-Key", key)]))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        basic(USER, ""),
        basic(USER, PASSWORD + "x"),
        basic("default", PASSWORD),
        basic("", ""),
        basic("none", ""),
        basic(READER, PASSWORD),
        basic(USER, "another"),
        {"Authorization": "Basic %%%"},
        {"Authorization": "Basic " + base64.b64encode(b"\xff\xfe").decode()},
        {"Authorization": f"Bearer {USER}"},
        {"X-ClickHouse-User": USER},
        {"X-ClickHouse-Key": "x"},
        {"X-ClickHouse-User": USER, "X-ClickHouse-Key": "x", **basic(USER, PASSWORD)},  # the first way counts
    ],
)
async def test_every_other_request_is_refused(get: Get, headers: dict[str, str]) -> None:
    assert refused(await get(headers=headers))
    assert refused(await get(headers=headers, params={"user": USER, "password": "wrong"}))


async def test_a_ping_needs_no_password_and_a_query_does(tmp_path: Path) -> None:
    transport = httpx.ASGITransport(app(tmp_path, PASSWORDS))  # runs no lifespan, which would start the engine
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        assert (await client.get("/ping")).text == "Ok.\n"
        assert refused(await client.post("/", content="SELECT 1"))


@pytest.mark.parametrize(
    ("statement", "uses"),
    [
        (b"SELECT 1", False),
        (b"SELECT profile(1) FROM lead_events -- file", False),
        (b"SELECT 1 INTO OUTFILE '/tmp/x'", True),
        (b"SELECT 1 INTO/**/outfile '/tmp/x'", True),
        (b"SELECT file('/etc/passwd')", True),
        (b"SELECT `file`('/etc/passwd')", True),
        (b"SELECT FILE /* x */ ('/etc/passwd')", True),
        (b"SELECT file -- x\n('/etc/passwd')", True),
    ],
)
def test_the_local_files_of_a_statement(statement: bytes, uses: bool) -> None:
    assert uses_local_files(statement) == uses
