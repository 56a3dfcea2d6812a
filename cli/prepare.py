"""``prepare`` and ``migrate``: bring topics and databases up to date before the pipeline starts.

Every start of the stack waits for ``prepare``. So its steps run in parallel, and each imports its modules when it runs.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated

import typer

from infra.errors import DependencyUnavailable
from infra.settings import Settings

_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(prepare)
    app.command()(migrate)


def prepare(*, as_json: _Json = False) -> None:
    """Create or alter the topics, migrate Postgres and ClickHouse, register the campaigns and LEADSTREAM_API_KEY.

    Exit code 1 when one of these fails.
    """
    settings = Settings.load()

    def migrate_and_register() -> str:
        migrated = _postgres(settings)
        return f"{migrated}; {asyncio.run(_register_campaigns(settings))}{asyncio.run(_register_key(settings))}"

    postgres = {"postgres": migrate_and_register}
    _run_in_parallel({"topics": partial(_topics, settings)} | _databases(settings) | postgres, as_json=as_json)


def migrate(*, as_json: _Json = False) -> None:
    """Migrate Postgres and ClickHouse.

    Exit code 1 when one of these fails.
    """
    _run_in_parallel(_databases(Settings.load()), as_json=as_json)


def _databases(settings: Settings) -> dict[str, Callable[[], str]]:
    return {"postgres": partial(_postgres, settings), "clickhouse": partial(_clickhouse, settings)}


def _run_in_parallel(steps: dict[str, Callable[[], str]], *, as_json: bool) -> None:
    started_at = time.monotonic()
    results: dict[str, str] = {}
    errors: dict[str, str] = {}
    # Threads, so that the imports of one step overlap with the network waits of another.
    with ThreadPoolExecutor(len(steps)) as pool:
        for name, future in {name: pool.submit(step) for name, step in steps.items()}.items():
            try:
                results[name] = future.result()
            except Exception as error:  # noqa: BLE001 - an error of one step must not hide the results of the others
                errors[name] = (
                    str(error) if isinstance(error, DependencyUnavailable) else f"{type(error).__name__}: {error}"
                )
                typer.echo(f"{name:<11}FAILED {errors[name]}", err=True)
            else:
                typer.echo(f"{name:<11}{results[name]}", err=as_json)
    if as_json:
        print(json.dumps({"results": results, "errors": errors}, indent=1))
    if errors:
        raise typer.Exit(1)
    if not as_json:
        print(f"{'ready':<11}in {time.monotonic() - started_at:.2f} s")


def _topics(settings: Settings) -> str:
    from infra.kafka.received import tenant_names  # noqa: PLC0415 - see the module's docstring
    from infra.kafka.topics import load_topics  # noqa: PLC0415
    from operations.broker_topics import apply  # noqa: PLC0415

    wanted = load_topics(tenants=tenant_names(settings.tenants_dir))
    corrected = [d for d in apply(settings, wanted) if d.correctable]
    return f"{len(corrected)} differences corrected" if corrected else "up to date"


def _postgres(settings: Settings) -> str:
    from operations.migrate_postgres import migrate  # noqa: PLC0415 - see above

    return _run(migrate(settings.database_url))


async def _register_campaigns(settings: Settings) -> str:
    """Register the event types that trigger campaigns, so that intake emits signals from its first batch on.

    An invalid file is skipped here: the campaigns process reports it and does not start.
    """
    from infra.postgres.pool import connect  # noqa: PLC0415 - see above
    from streams.campaigns.catalog import EVERY_TYPE, register_signals  # noqa: PLC0415
    from streams.campaigns.triggers import event_types, read_campaigns  # noqa: PLC0415

    campaigns, problems = read_campaigns(settings.campaigns_dir)
    pool = await connect(settings.database_url, size=1, application="prepare")
    try:
        # If a file is invalid, its event types are unknown: every type is registered until the campaigns start.
        await register_signals(pool, event_types(campaigns.values()) | ({EVERY_TYPE} if problems else set()))
    finally:
        await pool.close()
    warning = f", {len(problems)} problems: run `leadstream campaigns check`" if problems else ""
    return f"{len(campaigns)} campaigns registered{warning}"


async def _register_key(settings: Settings) -> str:
    """Register the key that commands use, for every tenant and with every scope. A revoked one stays revoked."""
    if settings.api_key is None:
        return ""
    from infra.keys import EVERY_TENANT, SCOPES  # noqa: PLC0415 - see above
    from infra.postgres.keys_table import KeysTable  # noqa: PLC0415
    from infra.postgres.pool import connect  # noqa: PLC0415

    pool = await connect(settings.database_url, size=1, application="prepare")
    try:
        key = settings.api_key.get_secret_value()
        new = await KeysTable(pool).register(key, EVERY_TENANT, sorted(SCOPES), name="LEADSTREAM_API_KEY")
    finally:
        await pool.close()
    return ", key registered" if new else ""


def _clickhouse(settings: Settings) -> str:
    from operations.migrate_clickhouse import migrate  # noqa: PLC0415 - see above

    return _run(migrate(settings.clickhouse_url))


def _run(migration: Awaitable[list[str]]) -> str:
    async def awaited() -> list[str]:
        return await migration

    applied = asyncio.run(awaited())
    return f"applied {', '.join(applied)}" if applied else "up to date"
