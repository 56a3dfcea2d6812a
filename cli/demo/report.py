"""What a person wants to see at the end, and what does not add up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from infra.settings import Settings


def problems(found: Mapping[str, Any]) -> list[str]:
    """Return every equation that does not hold; none means that nothing was lost and nothing doubled."""
    crm = found["crm"]["hubspot"]
    equations = [
        ("lost", found["lost"], "nothing", 0),
        ("received", found["received"], "events sent", found["events_sent"]),
        ("accepted", found["accepted"], "unique events", found["unique_events"]),
        ("duplicates", found["duplicates"], "duplicates sent", found["duplicates_sent"]),
        ("dead", found["dead"], "malformed sent", found["malformed_sent"]),
        ("ClickHouse events", found["clickhouse_events"], "accepted", found["accepted"]),
        ("ClickHouse own events", found["clickhouse_own_events"], "own events", found["own_events"]),
        ("ClickHouse leads", found["clickhouse_leads"], "leads", found["leads"]),
        ("HubSpot wanted", crm["wanted"], "leads", found["leads"]),
        ("HubSpot synced", crm["synced"], "wanted", crm["wanted"]),
        ("HubSpot's own records", crm["remote_records"], "synced", crm["synced"]),
        ("mails received", found["mails_received"], "messages sent", found["messages_sent"]),
        ("messages twice", found["messages_duplicate"], "nothing", 0),
        ("lag left", found["lag_left"], "nothing", 0),
    ]
    return [
        f"{name} is {value:,}, {other} is {wanted:,}" for name, value, other, wanted in equations if value != wanted
    ]


def show(console: Console, found: Mapping[str, Any], examples: Sequence[Mapping[str, Any]], settings: Settings) -> None:
    """Print counts in and out of every stage, latencies, a few leads, and what to try next."""
    crm = found["crm"]["hubspot"]
    flow = Table("stage", "in", "out", box=None, pad_edge=False)
    flow.add_row("sent", f"{found['events_sent']:,}", f"{found['received']:,} received by Kafka")
    said = f"{found['accepted']:,} accepted, {found['duplicates']:,} duplicates, {found['dead']:,} dead"
    flow.add_row("intake", f"{found['received']:,}", f"{said}, {found['lost']:,} lost")
    flow.add_row("leads", f"{found['accepted']:,}", f"{found['leads']:,} people ({found['merged']:,} merged away)")
    flow.add_row("ClickHouse", f"{found['accepted']:,}", f"{found['clickhouse_events']:,} events")
    flow.add_row("enrichment", f"{found['leads']:,}", f"{found['enriched']:,} leads enriched")
    flow.add_row("HubSpot", f"{crm['wanted']:,}", f"{crm['synced']:,} synced, {crm['remote_records']:,} records there")
    flow.add_row("e-mail", f"{found['messages_sent']:,}", f"{found['mails_received']:,} received once")
    console.print(flow)
    for store, wait in found["latency_ms"].items():
        console.print(f"sent → {store}: p50 {wait['p50']:,.0f} ms, p99 {wait['p99']:,.0f} ms", highlight=False)
    for lead in examples:
        console.print(
            f"lead {lead['lead_id']}, version {lead['version']}: {' → '.join(lead['steps'])} …", highlight=False
        )
    tenant, first = found["tenant"], examples[0]["lead_id"] if examples else "LEAD"
    statement = f"SELECT event_type, count() FROM lead_events WHERE tenant = '{tenant}' GROUP BY ALL"  # noqa: S608
    console.print(f'\nClickHouse   leadstream query "{statement}"', highlight=False, soft_wrap=True)
    console.print(f"Postgres     psql {settings.database_url}", highlight=False, soft_wrap=True)
    console.print(
        f"next         leadstream trace {first} · lag · dead list · status · down", highlight=False, soft_wrap=True
    )
    for problem in found["problems"]:
        console.print(f"[red]does not add up:[/red] {problem}")
    if not found["problems"]:
        console.print(f"[green]Nothing lost, nothing doubled[/green], in {found['seconds']:.0f} s.")
