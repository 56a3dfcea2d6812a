"""Runs the demo: sends the events, waits until they are processed, compares the counts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import httpx
from rich.console import Console
from rich.live import Live
from rich.table import Table

from cli.demo.people import People
from cli.demo.report import mismatches, show
from cli.demo.send import Sent, send
from cli.demo.stores import StoreReader
from infra.clickhouse.client import ClickHouse
from infra.clock import now_us
from infra.errors import DependencyUnavailable
from infra.kafka.producer import Deliverer
from infra.postgres.pool import connect
from infra.settings import Settings

_POLL_S = 0.5
_IDLE_POLLS = 3
_STALLED_S = 180.0


async def run(
    settings: Settings, places: Mapping[str, Any], *, events: int, seed: int, rate: int, quiet: bool, started_at: float
) -> dict[str, Any]:
    """Run the demo and print its report.

    Args:
        settings: of the running stack.
        places: the state of the stack, with the addresses of its parts.
        events: number of events to send.
        seed: of the events.
        rate: events per second; 0 means as fast as possible.
        quiet: show no live progress.
        started_at: when the command started, on the monotonic clock in seconds.

    Returns:
        The counts; ``problems`` lists the mismatches between them.

    """
    console = Console(stderr=True)
    pool = await connect(settings.database_url, size=2, application="demo")
    deliverer = Deliverer(settings, "demo")
    http = httpx.AsyncClient(base_url=places["api"]["url"], timeout=30, trust_env=False, headers=settings.api_headers)
    sent = Sent()
    try:
        async with ClickHouse(settings.clickhouse_url) as server:
            run_number = 1 + await pool.fetchval("SELECT count(DISTINCT tenant) FROM leads WHERE tenant LIKE 'demo-%'")
            tenant = f"demo-{run_number}"  # a new tenant, so that the counts of every run start at 0
            people = People(tenant, events, seed, now_us(), f".{run_number}" if run_number > 1 else "")
            stores = StoreReader(tenant, pool, server, places, settings)
            await stores.read_baseline()
            sending = asyncio.ensure_future(send(people, sent, deliverer, http, rate))
            with Live(console=console, refresh_per_second=4, transient=True) as live:
                await _wait_until_processed(sending, sent, events, stores, None if quiet else live)
            counts = await stores.read_counts(sent.at)
            examples = await stores.read_examples()
            stores.close()
    finally:
        await http.aclose()
        await deliverer.close()
        await pool.close()
    counts |= {
        "events_sent": sent.total,
        "unique_events": sent.unique,
        "duplicates_sent": sent.duplicates,
        "malformed_sent": sent.malformed,
        "lost": sent.total - counts["accepted"] - counts["duplicates"] - counts["dead"],
        "tenant": tenant,
        "seconds": round(time.monotonic() - started_at, 1),
    }
    counts["problems"] = mismatches(counts)
    show(console, counts, examples, settings)
    return counts


async def _wait_until_processed(
    sending: asyncio.Future[None], sent: Sent, events: int, stores: StoreReader, live: Live | None
) -> None:
    """Return when all events are sent and no work is pending in 3 polls, or when no count changed for 180 s."""
    idle_polls, changed_at = 0, time.monotonic()
    last: dict[str, int] = {}
    while idle_polls < _IDLE_POLLS:
        await asyncio.sleep(_POLL_S)
        if sending.done():
            sending.result()
        try:
            counts, pending = await stores.read_progress(), await stores.read_pending()
        except DependencyUnavailable:
            continue
        idle_polls = idle_polls + 1 if sending.done() and not pending else 0
        if live is not None:
            live.update(_progress(sent, events, counts, pending))
        state = counts | pending | {"sent": sent.total}
        if state != last:
            last, changed_at = state, time.monotonic()
        if time.monotonic() - changed_at > _STALLED_S:
            return  # the final counts show what is missing


def _progress(sent: Sent, events: int, counts: Mapping[str, int], pending: Mapping[str, int]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_row("sent", f"{sent.total:,} of {events:,}")
    table.add_row("accepted", f"{counts['accepted']:,}")
    table.add_row("leads", f"{counts['leads']:,}")
    table.add_row("synced to the CRM", f"{counts['synced']:,}")
    table.add_row("e-mails sent", f"{counts['messages']:,}")
    table.add_row("pending", "  ".join(f"{name} {n:,}" for name, n in pending.items()) or "nothing")
    return table
