"""``query``: runs an SQL query on ClickHouse."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from infra.clickhouse.client import ClickHouse, ClickHouseError
from infra.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(query)


def query(
    statement: Annotated[str, typer.Argument(help="A SELECT on lead_events, leads, outcomes or dead_letters.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per row.")] = False,
) -> None:
    """Run an SQL query on ClickHouse and print the rows. It cannot change anything."""
    try:
        rows = asyncio.run(_query(statement))
    except ClickHouseError as error:
        Console(stderr=True).print(str(error), highlight=False, markup=False)
        raise typer.Exit(1) from None
    if as_json:
        for row in rows:
            print(orjson.dumps(row).decode())
        return
    if not rows:
        sys.stderr.write("No rows.\n")
        return
    table = Table(*rows[0], box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)


async def _query(statement: str) -> list[dict[str, Any]]:
    settings = Settings.load()
    async with ClickHouse(settings.clickhouse_read_url or settings.clickhouse_url, read_only=True) as server:
        return await server.query(statement)
