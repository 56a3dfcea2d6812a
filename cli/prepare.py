"""``prepare`` and ``migrate``: bring topics and databases up to date before anything uses them.

Every start runs ``prepare``, so its three steps run in parallel and nothing is imported before it is needed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import typer

from infra.errors import DependencyAway
from infra.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(prepare)
    app.command()(migrate)


def prepare() -> None:
    """Apply the topics and migrate Postgres and ClickHouse, in parallel; exit 1 when one of them fails."""
    settings = Settings.load()
    _in_parallel({"topics": partial(_topics, settings)} | _databases(settings))


def migrate() -> None:
    """Migrate Postgres and ClickHouse, in parallel; exit 1 when one of them fails."""
    _in_parallel(_databases(Settings.load()))


def _databases(settings: Settings) -> dict[str, Callable[[], str]]:
    return {"postgres": partial(_postgres, settings), "clickhouse": partial(_clickhouse, settings)}


def _in_parallel(steps: dict[str, Callable[[], str]]) -> None:
    began = time.monotonic()
    failed = False
    # A thread each: then imports, too, overlap with another step's waiting.
    with ThreadPoolExecutor(len(steps)) as pool:
        for name, future in {name: pool.submit(step) for name, step in steps.items()}.items():
            try:
                result = future.result()
            except Exception as error:  # noqa: BLE001 - one step's failure must not hide the others' results
                failed = True
                reason = str(error) if isinstance(error, DependencyAway) else f"{type(error).__name__}: {error}"
                typer.echo(f"{name:<11}FAILED {reason}", err=True)
            else:
                print(f"{name:<11}{result}")
    if failed:
        raise typer.Exit(1)
    print(f"{'ready':<11}in {time.monotonic() - began:.2f} s")


def _topics(settings: Settings) -> str:
    from infra.kafka.topics import apply  # noqa: PLC0415 - on the start path, see the module

    corrected = [d for d in apply(settings) if d.correctable]
    return f"{len(corrected)} differences corrected" if corrected else "up to date"


def _postgres(settings: Settings) -> str:
    from infra.postgres.migrate import migrate  # noqa: PLC0415 - see above

    return _run(migrate(settings.database_url))


def _clickhouse(settings: Settings) -> str:
    from infra.clickhouse.migrate import migrate  # noqa: PLC0415 - see above

    return _run(migrate(settings.clickhouse_url))


def _run(migration: Awaitable[list[str]]) -> str:
    async def awaited() -> list[str]:
        return await migration

    applied = asyncio.run(awaited())
    return f"applied {', '.join(applied)}" if applied else "up to date"
