"""``erase LEAD``: erases a person, waits, and prints where the person was removed and what remains until when."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.clock import now_us, to_datetime, uuid7
from infra.settings import Settings

if TYPE_CHECKING:
    import asyncpg

    from cli.person import Person

_POLL_S = 0.2
_DELIVER_S = 30.0
# Topics whose records have values of people; the others have ids and codes only.
_TOPICS = (
    "leads.received",
    "leads.changed",
    "leads.enrichment-requested",
    "leads.campaign-signals",
    "leads.messages-requested",
    "leads.dead",
)
_SEGMENT = timedelta(days=7)  # Kafka deletes whole segments, and a segment is open for up to segment.ms (default)
_PARTS = timedelta(minutes=8)  # old_parts_lifetime of ClickHouse


@dataclass(slots=True)
class Removal:
    """Where a person was removed: ``stores`` with ``done_at`` or None, and what ``remains`` until when."""

    tenant: str
    lead_id: str
    event_id: str = ""
    erased_at: str = ""
    complete: bool = False
    stores: list[dict[str, Any]] = field(default_factory=list)
    remains: list[dict[str, str]] = field(default_factory=list)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(erase)


def erase(
    lead: Annotated[str, typer.Argument(metavar="LEAD", help="A lead_id, or an identifier such as an e-mail address.")],
    *,
    tenant: Annotated[str, typer.Option(help="The tenant, when several tenants have the identifier.")] = "",
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait until the person is removed everywhere.")] = 60,
    reason: Annotated[str, typer.Option(help="Why, for the record. No personal data.")] = "request",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Erase a person: delete every value, keep only keyed hashes of the identifiers.

    Waits and prints where the person was removed and when, and what cannot be removed yet, with its date. For a lead
    that was erased before, only prints this. Exit code 1 when there is no such lead, or when not everything was removed
    in time: the removal goes on, and the same command with the lead_id shows its state.
    """
    from cli.person import PersonError  # noqa: PLC0415 - only this command needs it

    try:
        removal = asyncio.run(_erase(Settings.load(), lead.strip(), tenant, wait, reason))
    except PersonError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    if as_json:
        print(json.dumps(asdict(removal), indent=1))
    else:
        _print(removal)
    if not removal.complete:
        raise typer.Exit(1)


async def _erase(settings: Settings, text: str, tenant: str, wait: float, reason: str) -> Removal:
    from cli.person import find_person  # noqa: PLC0415 - only this command needs the clients
    from infra.postgres import pool as postgres  # noqa: PLC0415

    pool = await postgres.connect(settings.database_url, size=2, application="erase")
    try:
        person = await find_person(pool, text, tenant, settings.suppression_key.get_secret_value())
        event_id = await _send(settings, person, reason) if person.identities or not person.erased_at else ""
        return await _wait(pool, person, event_id, wait)
    finally:
        pool.terminate()


async def _send(settings: Settings, person: Person, reason: str) -> str:
    """Send ``lead_erased`` like any event; return its id."""
    from api.ingest.accept import Acceptor, Checker, InvalidEvent  # noqa: PLC0415 - the Kafka client costs its import
    from cli.person import PersonError  # noqa: PLC0415
    from infra.kafka.producer import Deliverer  # noqa: PLC0415
    from schemas.senders import TRUSTED  # noqa: PLC0415

    if not person.identities:
        raise PersonError(f"The lead {person.lead_id} has no identity by which an event can name it.")
    event_id = uuid7(now_us())
    event = {
        "type": "lead_erased",
        "envelope": {
            "event_id": event_id,
            "tenant": person.tenant,
            "occurred_at": datetime.now(UTC).isoformat(),
            "source": "cli:erase",
        },
        "identifiers": _identifiers(person),
        "reason": reason,
    }
    checker = Checker(max_event_bytes=settings.max_event_bytes, max_ahead_us=settings.max_clock_ahead_s * 1_000_000)
    checked = checker.line(json.dumps(event).encode(), TRUSTED)
    if isinstance(checked, InvalidEvent):
        raise PersonError(f"The erasure is not a valid event: {checked.dead.detail}")
    deliverer = Deliverer(settings, "erase", timeout_s=_DELIVER_S)
    try:
        (item,) = (await Acceptor(deliverer, timeout_s=_DELIVER_S + 2).accept([checked]))[1]
    finally:
        await deliverer.close()
    if item["status"] != "accepted":
        raise PersonError("The erasure was not confirmed by Kafka: repeat the command.")
    return event_id


def _identifiers(person: Person) -> Mapping[str, Any]:
    """Return one identifier of the lead: a strong kind if it has one."""
    order = ("external_id", "email", "crm:", "phone", "anonymous_id")
    kind, value = min(
        person.identities,
        key=lambda each: next((n for n, name in enumerate(order) if each[0].startswith(name)), len(order)),
    )
    return {"crm_ids": {kind.removeprefix("crm:"): value}} if kind.startswith("crm:") else {kind: value}


async def _wait(pool: asyncpg.Pool, person: Person, event_id: str, wait: float) -> Removal:
    from infra.postgres.pool import connection  # noqa: PLC0415

    removal = Removal(person.tenant, person.lead_id, event_id)
    deadline = time.monotonic() + wait
    while True:
        async with connection(pool) as postgres:
            rows = await postgres.fetch(
                "SELECT store, lead_id, done_at, detail, erased_at, event_id FROM erasures "
                "WHERE CASE WHEN $1 <> '' THEN tenant = $3 AND event_id = $1 ELSE lead_id = ANY($2::uuid[]) END "
                "ORDER BY done_at, store",
                event_id,
                person.lead_ids,
                person.tenant,
            )
        removal.stores = [
            {
                "store": row["store"],
                "lead_id": str(row["lead_id"]),
                "removed_at": _time(row["done_at"]),
                "detail": row["detail"],
            }
            for row in rows
        ]
        if rows:
            removal.event_id, removal.erased_at = rows[0]["event_id"], _time(rows[0]["erased_at"]) or ""
            removal.remains = _remains(to_datetime(max(row["erased_at"] for row in rows)))
        removal.complete = bool(rows) and all(row["done_at"] for row in rows)
        if removal.complete or time.monotonic() >= deadline:
            return removal
        await asyncio.sleep(_POLL_S)


def _remains(erased_at: datetime) -> list[dict[str, str]]:
    """Return what cannot be removed yet, and until when at most."""
    from infra.kafka.topics import load_topics  # noqa: PLC0415

    topics = load_topics()
    found = []
    for name in _TOPICS:
        retention = timedelta(milliseconds=int(topics[name].config["retention.ms"]))
        why = "dead letters, for replay" if name == "leads.dead" else "records of before the erasure, by retention.ms"
        found.append({"place": f"Kafka topic {name}", "until": _day(erased_at + retention + _SEGMENT), "why": why})
    minutes = (erased_at + _PARTS).isoformat(timespec="minutes")
    found.append({"place": "ClickHouse files", "until": minutes, "why": "replaced parts, not readable by queries"})
    found.append({"place": "Postgres files", "until": "next vacuum", "why": "dead rows, not readable by queries"})
    found.append({"place": "backups", "until": "their expiry", "why": "of all databases: delete or let expire"})
    return found


def _day(at: datetime) -> str:
    return at.date().isoformat()


def _time(at: int | None) -> str | None:
    return to_datetime(at).isoformat(timespec="seconds") if at else None


def _print(removal: Removal) -> None:
    from rich.console import Console  # noqa: PLC0415 - not needed for JSON
    from rich.table import Table  # noqa: PLC0415

    console = Console(highlight=False)
    if not removal.stores:
        console.print("Sent, but not processed yet: see `leadstream lag`. Repeat the command with the lead_id.")
        console.print(f"lead {removal.lead_id}, event {removal.event_id}", markup=False)
        return
    console.print(f"lead {removal.lead_id}, tenant {removal.tenant}, erased at {removal.erased_at}", markup=False)
    done = Table("store", "removed at", "what", box=None, pad_edge=False, header_style="bold")
    for row in removal.stores:
        done.add_row(row["store"], row["removed_at"] or "not yet", row["detail"])
    console.print(done)
    left = Table("remains in", "until at most", "what", box=None, pad_edge=False, header_style="bold")
    for each in removal.remains:
        left.add_row(each["place"], each["until"], each["why"])
    console.print(left)
