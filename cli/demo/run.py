"""One demonstration from the first event to the last count."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import httpx
from rich.console import Console
from rich.live import Live
from rich.table import Table

from cli.demo.books import Books
from cli.demo.people import People
from cli.demo.report import problems, show
from cli.demo.send import Sent, send
from infra.clickhouse.client import ClickHouse
from infra.clock import now_us
from infra.errors import DependencyAway
from infra.kafka.producer import Deliverer
from infra.postgres.pool import connect
from infra.settings import Settings

_LOOK_S = 0.5
_QUIET_LOOKS = 3
_STUCK_S = 180.0


async def run(
    settings: Settings, places: Mapping[str, Any], *, events: int, seed: int, rate: int, quiet: bool, began: float
) -> dict[str, Any]:
    """Send, wait, reconcile, show; return the counts, with ``problems`` naming what does not add up."""
    console = Console(stderr=True)
    pool = await connect(settings.database_url, size=2, application="demo")
    deliverer = Deliverer(settings, "demo")
    http = httpx.AsyncClient(base_url=places["api"]["url"], timeout=30, trust_env=False)
    sent = Sent()
    try:
        async with ClickHouse(settings.clickhouse_url) as server:
            run_number = 1 + await pool.fetchval("SELECT count(DISTINCT tenant) FROM leads WHERE tenant LIKE 'demo-%'")
            tenant = f"demo-{run_number}"  # a tenant of its own, so that a second run begins at nothing
            people = People(tenant, events, seed, now_us(), f".{run_number}" if run_number > 1 else "")
            books = Books(tenant, pool, server, places, settings)
            await books.open()
            sending = asyncio.ensure_future(send(people, sent, deliverer, http, rate))
            with Live(console=console, refresh_per_second=4, transient=True) as live:
                await _watch(sending, sent, events, books, None if quiet else live)
            found = await books.close_books(sent.at)
            examples = await books.examples()
            books.close()
    finally:
        await http.aclose()
        await deliverer.close()
        await pool.close()
    found |= {
        "events_sent": sent.total,
        "unique_events": sent.unique,
        "duplicates_sent": sent.duplicates,
        "malformed_sent": sent.malformed,
        "lost": sent.total - found["accepted"] - found["duplicates"] - found["dead"],
        "tenant": tenant,
        "seconds": round(time.monotonic() - began, 1),
    }
    found["problems"] = problems(found)
    show(console, found, examples, settings)
    return found


async def _watch(sending: asyncio.Future[None], sent: Sent, events: int, books: Books, live: Live | None) -> None:
    """Wait until everything is sent and nothing is under way any more, three looks in a row, or nothing moves."""
    quiet, moved = 0, time.monotonic()
    last: dict[str, int] = {}
    while quiet < _QUIET_LOOKS:
        await asyncio.sleep(_LOOK_S)
        if sending.done():
            sending.result()
        try:
            counts, left = await books.glance(), await books.left()
        except DependencyAway:
            continue
        quiet = quiet + 1 if sending.done() and not left else 0
        if live is not None:
            live.update(_progress(sent, events, counts, left))
        state = counts | left | {"sent": sent.total}
        if state != last:
            last, moved = state, time.monotonic()
        if time.monotonic() - moved > _STUCK_S:
            return  # the books will say what does not add up


def _progress(sent: Sent, events: int, counts: Mapping[str, int], left: Mapping[str, int]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_row("sent", f"{sent.total:,} of {events:,}")
    table.add_row("accepted", f"{counts['accepted']:,}")
    table.add_row("leads", f"{counts['leads']:,}")
    table.add_row("in the CRM", f"{counts['synced']:,}")
    table.add_row("e-mails", f"{counts['messages']:,}")
    table.add_row("under way", "  ".join(f"{name} {n:,}" for name, n in left.items()) or "nothing")
    return table
