"""Serves HTTP with uvicorn on a bound socket. The signal handlers and the log configuration of uvicorn are disabled.

Guarantees: request line and headers of one request use bounded memory (uvicorn with httptools has no limit of its own).
The body of a request that was answered before it arrived is discarded, so that the client, which often sends all of it
before it reads, gets the answer; a connection that sends more than :data:`MAX_DISCARDED` of it is closed.
"""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD = 64 << 10  # bytes of request line and headers that have no end yet, beyond those read with the first of them
MAX_DISCARDED = 256 << 20  # bytes
_LINGER_S = (
    2.0  # how long a connection whose headers were refused is read: closed at once, the client may lose the answer
)
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-type: text/plain; charset=utf-8\r\ncontent-length: 47\r\nconnection: close\r\n\r\n"
    b"request line and headers are larger than 64 KiB"
)


class _Protocol(HttpToolsProtocol):
    """HTTP/1.1 with limits to what a request may send."""

    _in_head = False
    _head = 0
    _discarded = 0
    _framing = 0  # bytes since the head that are no body: sizes of chunks and trailers
    _refused = False

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head, self._discarded, self._framing = True, 0, 0, 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # a trailer must not authenticate (RFC 9110, section 6.5.1), and may be endless
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._framing = 0
        super().on_message_complete()

    def on_body(self, body: bytes) -> None:
        self._framing = 0
        super().on_body(body)
        if self.cycle.response_complete:
            self._discarded += len(body)
            if self._discarded > MAX_DISCARDED and not self.transport.is_closing():
                self.transport.close()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        continued = self._in_head
        self._framing += len(data)
        super().data_received(data)
        if not self._in_head and self._framing > MAX_HEAD + len(data) and not self.transport.is_closing():
            self.transport.close()
        if continued and self._in_head:
            self._head += len(data)
            if self._head > MAX_HEAD:
                self._refused = True
                self.transport.write(_TOO_LARGE)
                self.loop.call_later(_LINGER_S, self.transport.close)


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no signal handlers: uvicorn's end the process by the signal instead of with an exit code."""
        yield


def listen(host: str, port: int, *, backlog: int = 2048) -> socket.socket:
    """Return a socket that is bound to ``host``:``port`` (0: any free port) and accepts connections.

    Raises:
        OSError: the address is in use, or does not belong to this machine.

    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=backlog)


async def serve(app: ASGIApp, listener: socket.socket, *, lifespan: bool = False, grace_s: float = 10) -> None:
    """Serve ``app`` on ``listener`` until cancelled, then close ``listener``.

    After a cancellation it accepts no connections and gives requests in progress ``grace_s`` seconds to finish.
    ``lifespan``: the application has start-up and shutdown handlers.

    Raises:
        RuntimeError: the server ended without a cancellation, such as after a failed (and logged) start-up.

    """
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        loop="none",
        lifespan="on" if lifespan else "off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(grace_s),
    )
    server = _Server(config)
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    try:
        await asyncio.shield(serving)
    except asyncio.CancelledError:
        server.should_exit = True
        await serving
        raise
    finally:
        listener.close()
    raise RuntimeError("the HTTP server ended unexpectedly; the log has the reason")
