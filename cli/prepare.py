"""``prepare`` and ``migrate``: bring topics and databases up to date before anything runs on them.

``prepare`` is on the way of every start, so the three run side by side and nothing is imported before it is needed.
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
    """Apply the topics, migrate Postgres and ClickHouse, register campaigns; exit 1 when one of them fails."""
    settings = Settings.load()
    postgres = {"postgres": lambda: f"{_postgres(settings)}; {asyncio.run(_register_campaigns(settings))}"}
    _side_by_side({"topics": partial(_topics, settings)} | _databases(settings) | postgres)


def migrate() -> None:
    """Migrate Postgres and ClickHouse, side by side; exit 1 when one of them fails."""
    _side_by_side(_databases(Settings.load()))


def _databases(settings: Settings) -> dict[str, Callable[[], str]]:
    return {"postgres": partial(_postgres, settings), "clickhouse": partial(_clickhouse, settings)}


def _side_by_side(steps: dict[str, Callable[[], str]]) -> None:
    began = time.monotonic()
    failed = False
    # A thread each: the imports too then overlap with another's waiting.
    with ThreadPoolExecutor(len(steps)) as pool:
        for name, future in {name: pool.submit(step) for name, step in steps.items()}.items():
            try:
                said = future.result()
            except Exception as error:  # noqa: BLE001 - whatever one step says, the others are told of too
                failed = True
                reason = str(error) if isinstance(error, DependencyAway) else f"{type(error).__name__}: {error}"
                typer.echo(f"{name:<11}FAILED {reason}", err=True)
            else:
                print(f"{name:<11}{said}")
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


async def _register_campaigns(settings: Settings) -> str:
    """Register the event types of the valid campaign files, so that intake signals them from its first batch on.

    A wrong file is the business of the campaigns process, which names it and does not start: here it is skipped.
    """
    from infra.postgres.pool import connect  # noqa: PLC0415 - see above
    from streams.campaigns.catalog import register_signals  # noqa: PLC0415
    from streams.campaigns.triggers import event_types, read_campaigns  # noqa: PLC0415

    campaigns, problems = read_campaigns(settings.campaigns_dir)
    pool = await connect(settings.database_url, size=1, application="prepare")
    try:
        await register_signals(pool, event_types(campaigns.values()))
    finally:
        await pool.close()
    wrong = f", {len(problems)} problems: see `leadstream campaigns check`" if problems else ""
    return f"{len(campaigns)} campaigns registered{wrong}"


def _clickhouse(settings: Settings) -> str:
    from infra.clickhouse.migrate import migrate  # noqa: PLC0415 - see above

    return _run(migrate(settings.clickhouse_url))


def _run(migration: Awaitable[list[str]]) -> str:
    async def awaited() -> list[str]:
        return await migration

    applied = asyncio.run(awaited())
    return f"applied {', '.join(applied)}" if applied else "up to date"
