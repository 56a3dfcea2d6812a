"""What the supervisor needs to know of a process: how to start it, when it is ready, how it stops."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL, SIGTERM

HOST = "127.0.0.1"
NOT_INSTALLED = "what the embedded stack runs on is not installed: run `make setup` in the checkout"
_ASK_S = 1.0
# Below the range that systems take the ports of outgoing connections from, so that none of those sits on ours.
_FIRST_PORT, _LAST_PORT = 20_000, 32_000
_TRIES = 200
# What the end of a log says -> what a person has to do.
_ADVICE = {
    "No space left on device": "the disk is full: make room, then start again",
    "Address already in use": "another program has its port: stop that one, or remove ports.json from the state folder",
    "Cannot allocate memory": "this machine has too little free memory",
    "ModuleNotFoundError: No module named": NOT_INSTALLED,
    "Permission denied": "the state folder, or a file in it, belongs to somebody else",
}


class PartError(Exception):
    """A part cannot be set up or started; the message says what to mend."""


@dataclass(frozen=True, slots=True)
class Part:
    """One process. ``ready`` returns whether it can be used by now; it must neither block nor raise."""

    name: str
    command: list[str]
    ready: Callable[[], Awaitable[bool]]
    environment: Mapping[str, str] = field(default_factory=dict)
    user: int | None = None  # run as this user id (Postgres refuses to run as root)
    nice: int = 0  # added to our own niceness: who gives way when the processors are busy
    stop_signal: int = SIGTERM
    stop_s: float = 15
    # When the supervisor is killed nobody is left to end what hangs, and every part recovers from a kill.
    death_signal: int = SIGKILL


async def answers(port: int, path: str = "/ready") -> bool:
    """Return whether ``GET path`` on ``port`` of this machine is answered with 200."""
    line = b""
    with suppress(OSError, TimeoutError):
        async with conversation(port) as (reader, writer):
            writer.write(f"GET {path} HTTP/1.0\r\nHost: {HOST}\r\n\r\n".encode())
            line = await reader.readline()
    return b" 200 " in line


async def listens(port: int) -> bool:
    """Return whether something accepts connections on ``port`` of this machine."""
    with suppress(OSError, TimeoutError):
        async with conversation(port):
            return True
    return False


@asynccontextmanager
async def conversation(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect to ``port`` of this machine; a second for all of it. Raises OSError or TimeoutError."""
    async with asyncio.timeout(_ASK_S):
        reader, writer = await asyncio.open_connection(HOST, port)
        try:
            yield reader, writer
        finally:
            writer.close()


def free_port(wished: int = 0, taken: Iterable[int] = ()) -> int:
    """Return ``wished`` where nothing listens on it, else any free port of this machine that is not in ``taken``."""
    spread = (_FIRST_PORT + secrets.randbelow(_LAST_PORT - _FIRST_PORT) for _ in range(_TRIES))
    for port in (*([wished] if wished else []), *spread):
        if port not in taken and _is_free(port):
            return port
    raise PartError(f"this machine has no free port on {HOST}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def tail(log: Path, lines: int = 8) -> str:
    """Return the last lines of a log, for a person who has to know why something did not start."""
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 8192))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return "(no log)"


def advice(said: str) -> str:
    """Return what to do about the end of a log, or nothing where it says nothing we know."""
    return next((what for words, what in _ADVICE.items() if words in said), "")
