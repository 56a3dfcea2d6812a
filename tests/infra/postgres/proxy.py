"""A TCP proxy in front of Postgres that hangs or breaks connections on demand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit


class Proxy:
    """Forwards connections to the Postgres of ``dsn``; its own address is :attr:`dsn`.

    ``break_on``: a connection breaks when the client sends these bytes; ``broken`` counts them.
    """

    def __init__(self, dsn: str) -> None:
        self._target = urlsplit(dsn)
        self._forwards = asyncio.Event()
        self._forwards.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.dsn = ""
        self.break_on = b""
        self.broken = 0

    def hang(self) -> None:
        """Forward nothing from now on; connections stay open."""
        self._forwards.clear()

    def break_all(self) -> None:
        """Break every connection, and forward those made later."""
        for writer in self._writers:
            writer.transport.abort()
        self._forwards.set()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client."""
        there = await asyncio.open_connection(self._target.hostname, self._target.port)
        self._writers |= {writer, there[1]}
        with suppress(OSError):
            await asyncio.gather(self._pump(reader, there[1], self.break_on_request), self._pump(there[0], writer))
        for each in (writer, there[1]):
            each.transport.abort()

    def break_on_request(self, data: bytes) -> None:
        """Raise where the connection is to break."""
        if self.break_on and self.break_on in data:
            self.broken += 1
            raise ConnectionResetError

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, check: object = None) -> None:
        while data := await reader.read(65_536):
            await self._forwards.wait()
            if callable(check):
                check(data)
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError  # one side has ended, so does the other

    def at(self, port: int) -> str:
        """Return the address of Postgres by way of ``port``."""
        user = self._target.netloc.rpartition("@")[0]
        netloc = f"{user}@127.0.0.1:{port}" if user else f"127.0.0.1:{port}"
        return self._target._replace(netloc=netloc).geturl()


@asynccontextmanager
async def proxied(dsn: str) -> AsyncIterator[Proxy]:
    """Run a proxy while the body runs."""
    proxy = Proxy(dsn)
    server = await asyncio.start_server(proxy.connected, "127.0.0.1", 0)
    proxy.dsn = proxy.at(server.sockets[0].getsockname()[1])
    try:
        yield proxy
    finally:
        server.close()
        proxy.break_all()
