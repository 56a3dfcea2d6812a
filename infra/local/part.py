"""What the supervisor needs to know of a process: how to start it, when it is ready, how it stops."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGTERM
from urllib.parse import urlsplit


class PartError(Exception):
    """A part cannot be set up; the message says what to mend."""


@dataclass(frozen=True, slots=True)
class Part:
    """One process. ``ready`` returns whether it can be used by now; it must neither block nor raise."""

    name: str
    command: list[str]
    ready: Callable[[], Awaitable[bool]]
    environment: Mapping[str, str] = field(default_factory=dict)
    user: int | None = None  # run as this user id (Postgres refuses to run as root)
    stop_signal: int = SIGTERM
    stop_s: float = 15


async def answers(url: str, path: str = "/ready") -> bool:
    """Return whether ``GET url + path`` is answered with 200 within a second."""
    place = urlsplit(url)
    try:
        async with asyncio.timeout(1):
            reader, writer = await asyncio.open_connection(place.hostname, place.port)
            writer.write(f"GET {path} HTTP/1.0\r\nHost: {place.netloc}\r\n\r\n".encode())
            line = await reader.readline()
            writer.close()
    except (OSError, TimeoutError):
        return False
    return b" 200 " in line


async def listens(port: int) -> bool:
    """Return whether something accepts connections on ``port`` of this machine."""
    try:
        async with asyncio.timeout(1):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
    except (OSError, TimeoutError):
        return False
    return True


def free_port(wished: int = 0) -> int:
    """Return ``wished`` where nothing listens on it, else any free port of this machine."""
    for port in (wished, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise PartError("this machine has no free port on 127.0.0.1")


def tail(log: Path, lines: int = 8) -> str:
    """Return the last lines of a log, for a person who has to know why something did not start."""
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 8192))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return "(no log)"
