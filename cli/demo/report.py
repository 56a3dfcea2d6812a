"""Compares and prints the counts of the demo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table

from infra.settings import Settings


def mismatches(counts: Mapping[str, Any]) -> list[str]:
    """Return a sentence for every two counts that must be equal and are not; none means nothing lost or duplicated."""
    crm = counts["crm"]["hubspot"]
    equations = [
        ("lost", counts["lost"], "the expected number", 0),
        ("received", counts["received"], "events sent", counts["events_sent"]),
        ("accepted", counts["accepted"], "unique events", counts["unique_events"]),
        ("duplicates", counts["duplicates"], "duplicates sent", counts["duplicates_sent"]),
        ("dead", counts["dead"], "malformed sent", counts["malformed_sent"]),
        ("ClickHouse events", counts["clickhouse_events"], "accepted", counts["accepted"]),
        ("ClickHouse own events", counts["clickhouse_own_events"], "own events", counts["own_events"]),
        ("ClickHouse leads", counts["clickhouse_leads"], "leads", counts["leads"]),
        ("leads to sync to HubSpot", crm["wanted"], "leads", counts["leads"]),
        ("synced to HubSpot", crm["synced"], "leads to sync", crm["wanted"]),
        ("records in HubSpot", crm["remote_records"], "synced leads with values", crm["synced"] - counts["erased"]),
        ("e-mails received", counts["mails_received"], "messages sent", counts["messages_sent"]),
        ("duplicate e-mails", counts["messages_duplicate"], "the expected number", 0),
        ("pending work", counts["lag_left"], "the expected number", 0),
    ]
    return [
        f"{name} is {value:,}, but {other} is {expected:,}"
        for name, value, other, expected in equations
        if value != expected
    ]


def show(
    console: Console, counts: Mapping[str, Any], examples: Sequence[Mapping[str, Any]], settings: Settings
) -> None:
    """Print the counts of every stage, latencies, a few leads, commands to try next, and the mismatches."""
    crm = counts["crm"]["hubspot"]
    flow = Table("stage", "in", "out", box=None, pad_edge=False)
    flow.add_row("sent", f"{counts['events_sent']:,}", f"{counts['received']:,} received by Kafka")
    decided = f"{counts['accepted']:,} accepted, {counts['duplicates']:,} duplicates, {counts['dead']:,} dead"
    flow.add_row("intake", f"{counts['received']:,}", f"{decided}, {counts['lost']:,} lost")
    merged = f"{counts['merged']:,} merged into others"
    flow.add_row("leads", f"{counts['accepted']:,}", f"{counts['leads']:,} leads ({merged})")
    flow.add_row("ClickHouse", f"{counts['accepted']:,}", f"{counts['clickhouse_events']:,} events")
    flow.add_row("enrichment", f"{counts['leads']:,}", f"{counts['enriched']:,} leads enriched")
    records = f"{crm['remote_records']:,} records in HubSpot"
    flow.add_row("HubSpot", f"{crm['wanted']:,}", f"{crm['synced']:,} synced, {records}")
    flow.add_row("e-mail", f"{counts['messages_sent']:,}", f"{counts['mails_received']:,} received once")
    console.print(flow)
    for store, latency in counts["latency_ms"].items():
        console.print(f"sent → {store}: p50 {latency['p50']:,.0f} ms, p99 {latency['p99']:,.0f} ms", highlight=False)
    for lead in examples:
        console.print(
            f"lead {lead['lead_id']}, version {lead['version']}: {' → '.join(lead['steps'])} …", highlight=False
        )
    tenant, first = counts["tenant"], examples[0]["lead_id"] if examples else "LEAD"
    statement = f"SELECT event_type, count() FROM lead_events WHERE tenant = '{tenant}' GROUP BY ALL"  # noqa: S608
    console.print(f'\nClickHouse   leadstream query "{statement}"', highlight=False, soft_wrap=True)
    console.print(f"Postgres     {_psql(settings)}", highlight=False, soft_wrap=True, markup=False)
    console.print(
        f"next         leadstream trace {first} · lag · dead list · status · down", highlight=False, soft_wrap=True
    )
    for mismatch in counts["problems"]:
        console.print(f"[red]mismatch:[/red] {mismatch}")
    if not counts["problems"]:
        console.print(f"[green]No event lost, none duplicated[/green], in {counts['seconds']:.0f} s.")


def _psql(settings: Settings) -> str:
    """Return a command that connects to Postgres; its password stays in its file: this output may be kept."""
    address = urlsplit(settings.database_url)
    place = address._replace(netloc=f"{address.username}@{address.hostname}:{address.port}").geturl()
    return f"PGPASSWORD=$(cat '{settings.home}/postgres.secret') psql {place}"
