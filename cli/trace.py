"""``trace ID``: the timeline of one event or lead, from Kafka to every destination."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from infra.clock import to_datetime
from infra.settings import Settings

if TYPE_CHECKING:
    from cli.timeline import Timeline

_WIDTH = 200  # columns of output that is not to a terminal


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(trace)


def trace(
    id_: Annotated[
        str,
        typer.Argument(
            metavar="ID", help="An event_id, a lead_id, an identifier such as an e-mail, or topic/partition/offset."
        ),
    ],
    *,
    tenant: Annotated[str, typer.Option(help="The tenant, when several tenants have the same ID.")] = "",
    values: Annotated[bool, typer.Option(help="Show new values. They may be personal data.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show every step of one event or lead, with the time between steps.

    Exit code 1 when nothing is found.
    """
    from cli.timeline import NothingFoundError  # noqa: PLC0415 - only this command needs it

    try:
        timeline = asyncio.run(_read(Settings.load(), id_.strip(), tenant, values=values))
    except NothingFoundError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    if as_json:
        print(json.dumps(asdict(timeline), indent=1))
    else:
        _print(timeline)


async def _read(settings: Settings, id_: str, tenant: str, *, values: bool) -> Timeline:
    from cli.timeline import TimelineReader  # noqa: PLC0415 - only this command needs the clients
    from infra.clickhouse.client import ClickHouse  # noqa: PLC0415
    from infra.postgres import pool as postgres  # noqa: PLC0415

    pool = await postgres.connect(settings.database_url, size=1, application="trace")
    try:
        async with ClickHouse(settings.clickhouse_url) as clickhouse, postgres.connection(pool) as connection:
            return await TimelineReader(clickhouse, connection, values=values).read(id_, tenant)
    finally:
        pool.terminate()


def _print(timeline: Timeline) -> None:
    from rich.console import Console  # noqa: PLC0415 - not needed for JSON
    from rich.table import Table  # noqa: PLC0415

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDTH)
    if timeline.lead_id:
        console.print(f"lead {timeline.lead_id}, tenant {timeline.tenant}, version {timeline.version}", markup=False)
    if timeline.merged:
        console.print(f"merged into it: {', '.join(timeline.merged)}", markup=False)
    table = Table("time", "after", "stage", "what", "detail", box=None, pad_edge=False, header_style="bold")
    for column in table.columns[:4]:
        column.no_wrap = True
    table.columns[1].justify = "right"
    table.columns[4].overflow = "fold"
    for step in timeline.steps:
        at = to_datetime(step.at).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
        table.add_row(at, _duration(step.after_ms), step.stage, step.what, step.said)
    console.print(table, markup=False)
    for row in timeline.crm:
        synced = row["synced_version"] >= row["wanted_version"]
        error = ": ".join(filter(None, (row["last_error"], row["detail"]))) or "no error so far"
        state = "up to date" if synced else f"pending ({error})"
        versions = f"version {row['synced_version']} of {row['wanted_version']} synced"
        remote_id = row["remote_id"] or "none"
        console.print(f"{row['destination']}: {state}, {versions}, remote id {remote_id}", markup=False)


def _duration(milliseconds: float) -> str:
    if not milliseconds:
        return ""
    return f"+{milliseconds:,.1f} ms" if milliseconds < 1000 else f"+{milliseconds / 1000:,.1f} s"  # noqa: PLR2004
