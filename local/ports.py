"""Ports of this machine: choosing free ones, and readiness checks over a port."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress

from local.process_spec import StackError

HOST = "127.0.0.1"
_CONNECTION_S = 1.0
# Below the usual ephemeral range, so that an outgoing connection of another program never occupies a chosen port.
_FIRST_PORT, _LAST_PORT = 20_000, 32_000
_TRIES = 200


async def http_ready(port: int, path: str = "/ready") -> bool:
    """Return whether ``GET path`` on ``port`` of this machine returns status 200 within one second."""
    status_line = b""
    with suppress(OSError, TimeoutError):
        async with local_connection(port) as (reader, writer):
            writer.write(f"GET {path} HTTP/1.0\r\nHost: {HOST}\r\n\r\n".encode())
            status_line = await reader.readline()
    return b" 200 " in status_line


async def accepts_connections(port: int) -> bool:
    """Return whether a process accepts connections on ``port`` of this machine within one second."""
    with suppress(OSError, TimeoutError):
        async with local_connection(port):
            return True
    return False


@asynccontextmanager
async def local_connection(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect to ``port`` of this machine. The limit of one second includes the body of the ``async with``.

    Raises:
        OSError: the connection failed.
        TimeoutError: the second is over.

    """
    async with asyncio.timeout(_CONNECTION_S):
        reader, writer = await asyncio.open_connection(HOST, port)
        try:
            yield reader, writer
        finally:
            writer.close()


def free_port(preferred: int = 0, excluded: Iterable[int] = ()) -> int:
    """Return ``preferred`` if it is free, else a random free port of this machine that is not in ``excluded``.

    The port is not reserved: another program can still bind it first.

    Raises:
        StackError: no free port was found.

    """
    random_ports = (_FIRST_PORT + secrets.randbelow(_LAST_PORT - _FIRST_PORT) for _ in range(_TRIES))
    for port in (*([preferred] if preferred else []), *random_ports):
        if port not in excluded and _is_free(port):
            return port
    raise StackError(f"no free port on {HOST} between {_FIRST_PORT} and {_LAST_PORT}: stop programs that listen there")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True
