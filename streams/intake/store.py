"""What intake reads and writes in Postgres: arrays through ``unnest``, one statement a table, in a fixed order.

All functions run in the caller's one transaction. Locks are taken in the order identities, leads (by lead_id),
receipts, so that two workers cannot wait for one another in a circle; where the server finds one all the same, and
wherever another worker got in between lookup and write, :class:`Contended` says: roll back and do the batch again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple

import asyncpg
import orjson

from schemas.registry import registry
from streams.intake.dedupe import Receipt
from streams.intake.event import Event, Identity
from streams.intake.merge import TOUCHING, Lead, Touch

_POSTGRES_EPOCH = 946_684_800_000_000  # 2000-01-01 in microseconds since 1970: what timestamptz counts from

_TURN_S = 300  # a clock may be wrong by as much
_TURN_LOCK = 7017840

_FILTERED = ("email", "status", "owner", "region", "score")  # attributes that are columns too

CONTENDED = (asyncpg.UniqueViolationError, asyncpg.DeadlockDetectedError, asyncpg.SerializationError)


async def speak_microseconds(connection: asyncpg.Connection) -> None:
    """Have ``connection`` take and give timestamptz as microseconds since 1970; all of intake's connections do."""
    await connection.set_type_codec(
        "timestamptz",
        schema="pg_catalog",
        format="tuple",
        encoder=lambda micros: (micros - _POSTGRES_EPOCH,),
        decoder=lambda row: row[0] + _POSTGRES_EPOCH,
    )


class Contended(Exception):  # noqa: N818 - it asks for another try
    """Another worker decided something about the same people in the same moment."""


class Change(NamedTuple):
    """One accepted event: the version it made, what it changed, whom it merged, and the lead as to be told."""

    event: Event
    lead_id: str
    version: int
    decided_at: int
    changed: Collection[str]  # the fields that it changed
    changes: str  # those fields and their new values, as JSON
    merged: dict[str, int]  # each lead that became part of this one, and the version that ended it
    lead_version: int  # the lead's newest one: on a redelivery it may be later than ``version``
    lead: str  # what is known of lead.avsc's fields, as JSON


@dataclass(frozen=True, slots=True)
class Merge:
    """Two existing leads that became one, with all it takes to undo it."""

    survivor: Lead
    loser: Lead
    event_id: str
    survivor_before: bytes  # JSON of attributes and provenance


async def make_months(connection: asyncpg.Connection) -> None:
    """Make the partitions of the months to come, where they are not there yet."""
    await connection.execute("SELECT make_month_partitions()")


async def take_turns(connection: asyncpg.Connection, now: int) -> None:
    """Around a month's turn have one worker decide at a time.

    The receipts' key holds the month, so nothing else would stop two workers that have the same event in hand, one a
    moment before and one after it.
    """
    at = datetime.fromtimestamp(now / 1e6, UTC)
    around = (at - timedelta(seconds=_TURN_S), at + timedelta(seconds=_TURN_S))
    if around[0].month != around[1].month:
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _TURN_LOCK)


async def receipts_of(connection: asyncpg.Connection, events: Iterable[Event]) -> dict[str, Receipt]:
    """Return the receipts of those ``events`` that were accepted before, by event key."""
    rows = await connection.fetch(
        'SELECT key, topic, partition, "offset", lead_id, version FROM receipts WHERE key = ANY($1::uuid[])',
        [event.key for event in events],
    )
    return {row[0].hex: Receipt(row[1], row[2], row[3], str(row[4]), row[5]) for row in rows}


async def leads_of(connection: asyncpg.Connection, identities: Iterable[Identity]) -> dict[Identity, str]:
    """Return whose each of the ``identities`` is, where it is known."""
    wanted = list(dict.fromkeys(identities))
    rows = await connection.fetch(
        """
        SELECT w.n, i.lead_id
        FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS w (tenant, kind, value, n)
        JOIN identities i USING (tenant, kind, value)
        """,
        *_columns(wanted, 3),
    )
    return {wanted[n - 1]: str(lead_id) for n, lead_id in rows}


async def bind(connection: asyncpg.Connection, bindings: Mapping[Identity, str]) -> None:
    """Store new identities by COPY. Raises UniqueViolationError where another worker has just stored one of them."""
    if not bindings:
        return
    rows = sorted((*identity, lead_id) for identity, lead_id in bindings.items())
    await connection.copy_records_to_table("identities", records=rows, columns=["tenant", "kind", "value", "lead_id"])


async def lock(connection: asyncpg.Connection, lead_ids: Iterable[str]) -> dict[str, Lead]:
    """Lock and return existing leads. Raises Contended where one was merged away since its identity was looked up."""
    found = await read(connection, lead_ids, "FOR NO KEY UPDATE")
    if any(lead.merged_into for lead in found.values()):
        raise Contended
    return found


async def read(connection: asyncpg.Connection, lead_ids: Iterable[str], suffix: str = "") -> dict[str, Lead]:
    """Return leads by id, as they are stored."""
    wanted = sorted(set(lead_ids))
    if not wanted:
        return {}
    rows = await connection.fetch(
        f"""
        SELECT lead_id, tenant, version, created_at, updated_at, merged_into, attributes, provenance
        FROM leads WHERE lead_id = ANY($1::uuid[]) ORDER BY lead_id {suffix}
        """,  # noqa: S608 - the suffix is a word of ours
        wanted,
    )
    return {
        (lead_id := str(row[0])): Lead(
            lead_id,
            row[1],
            row[2],
            row[3],
            row[4],
            str(row[5] or ""),
            orjson.loads(row[6]),
            orjson.loads(row[7]),
            row[6],
        )
        for row in rows
    }


async def touches_of(connection: asyncpg.Connection, lead_ids: Collection[str]) -> dict[str, list[Touch]]:
    """Return every touch of existing leads, those of the leads merged into them included, from their history."""
    found: dict[str, list[Touch]] = {lead_id: [] for lead_id in lead_ids}
    if not found:
        return found
    rows = await connection.fetch(
        """
        WITH own AS (
            SELECT w AS lead_id, w AS alias_id FROM unnest($1::uuid[]) AS w
            UNION ALL SELECT lead_id, alias_id FROM lead_aliases WHERE lead_id = ANY($1::uuid[])
        )
        SELECT own.lead_id, h.occurred_at, h.event_id, h.source
        FROM own JOIN lead_history h ON h.lead_id = own.alias_id WHERE h.event_type = ANY($2::text[])
        """,
        list(found),
        [kind.name for kind in registry().events.values() if kind.authority in TOUCHING],
    )
    for row in rows:
        found[str(row[0])].append((row[1], row[2], row[3]))
    return found


async def save(connection: asyncpg.Connection, leads: Mapping[str, Lead], fresh: frozenset[str], now: int) -> None:
    """Insert the ``fresh`` ones of ``leads`` by COPY and replace of the others, which are locked, those changed now."""
    inserted = [
        (
            lead.lead_id,
            lead.tenant,
            lead.version,
            now,
            now,
            *map(lead.attributes.get, _FILTERED),
            lead.told,
            orjson.dumps(lead.provenance).decode(),
        )
        for lead_id, lead in leads.items()
        if lead_id in fresh
    ]
    if inserted:
        columns = ["lead_id", "tenant", "version", "created_at", "updated_at", *_FILTERED, "attributes", "provenance"]
        await connection.copy_records_to_table("leads", records=inserted, columns=columns)
    updated = [
        (lead_id, lead.version, lead.told, orjson.dumps(lead.provenance).decode())
        for lead_id, lead in leads.items()
        if lead_id not in fresh and lead.updated_at == now
    ]
    if updated:
        await connection.execute(
            """
            UPDATE leads SET version = w.v, updated_at = $5, attributes = w.a, provenance = w.p, email = w.a->>'email',
                status = w.a->>'status', owner = w.a->>'owner', region = w.a->>'region', score = (w.a->>'score')::float8
            FROM unnest($1::uuid[], $2::bigint[], $3::jsonb[], $4::json[]) AS w (l, v, a, p) WHERE lead_id = w.l
            """,
            *_columns(updated, 4),
            now,
        )


async def remember(connection: asyncpg.Connection, changes: Sequence[Change], now: int) -> None:
    """Write receipts and history by COPY. Raises UniqueViolationError where another worker has just accepted one."""
    month = datetime.fromtimestamp(now / 1e6, UTC).date().replace(day=1)
    await connection.copy_records_to_table(
        "receipts",
        records=[
            (c.event.key, month, c.event.topic, c.event.partition, c.event.offset, c.lead_id, c.version)
            for c in sorted(changes, key=lambda c: c.event.key)
        ],
        columns=["key", "month", "topic", "partition", "offset", "lead_id", "version"],
    )
    columns = ["lead_id", "version", "month", "decided_at", "tenant", "event_id", "event_type", "source", "occurred_at"]
    columns += ["changes", "merged"]  # an array costs more to write than the rest, and hardly a change merges
    plain = [_history(change, month, now) for change in changes if not change.merged]
    await connection.copy_records_to_table("lead_history", records=plain, columns=columns[:-1])
    if len(plain) < len(changes):
        merging = [(*_history(change, month, now), [*change.merged]) for change in changes if change.merged]
        await connection.copy_records_to_table("lead_history", records=merging, columns=columns)


def _history(change: Change, month: date, now: int) -> tuple[Any, ...]:
    event = change.event
    return (
        *(change.lead_id, change.version, month, now, event.tenant, event.event_id, event.type.name, event.source),
        *(event.occurred_at, change.changes),
    )


async def record_merges(connection: asyncpg.Connection, merges: Sequence[Merge]) -> None:
    """Give the losers' identities and aliases to the survivors, and write down all it takes to undo that."""
    if not merges:
        return
    pairs = _columns([(merge.loser.lead_id, merge.survivor.lead_id) for merge in merges], 2)
    moved: dict[str, list[list[str]]] = {merge.loser.lead_id: [] for merge in merges}
    for row in await connection.fetch(_MOVE_IDENTITIES, *pairs):
        moved[str(row[0])].append([row[1], row[2]])
    for statement in _MERGE:
        await connection.execute(statement, *pairs)
    rows = [
        (
            merge.survivor.lead_id,
            merge.loser.lead_id,
            merge.loser.tenant,
            merge.event_id,
            merge.survivor_before.decode(),
            snapshot(merge.loser).decode(),
            orjson.dumps(moved[merge.loser.lead_id]).decode(),
        )
        for merge in merges
    ]
    columns = ["survivor_id", "loser_id", "tenant", "event_id", "survivor", "loser", "identities"]
    await connection.copy_records_to_table("lead_merges", records=rows, columns=columns)


_MOVE_IDENTITIES = """
UPDATE identities i SET lead_id = w.survivor FROM unnest($1::uuid[], $2::uuid[]) AS w (loser, survivor)
WHERE i.lead_id = w.loser RETURNING w.loser, i.kind, i.value
"""
_MERGE = (
    """
    UPDATE leads s SET created_at = least(s.created_at, m.first)
    FROM (SELECT w.survivor, min(l.created_at) AS first FROM unnest($1::uuid[], $2::uuid[]) AS w (loser, survivor)
          JOIN leads l ON l.lead_id = w.loser GROUP BY w.survivor) AS m WHERE s.lead_id = m.survivor
    """,
    """
    UPDATE leads l SET merged_into = w.survivor FROM unnest($1::uuid[], $2::uuid[]) AS w (loser, survivor)
    WHERE l.lead_id = w.loser
    """,
    """
    UPDATE lead_aliases a SET lead_id = w.survivor FROM unnest($1::uuid[], $2::uuid[]) AS w (loser, survivor)
    WHERE a.lead_id = w.loser
    """,
    "INSERT INTO lead_aliases (alias_id, lead_id) SELECT * FROM unnest($1::uuid[], $2::uuid[])",
)


async def decided(
    connection: asyncpg.Connection, redelivered: Sequence[tuple[Event, Receipt]]
) -> dict[tuple[str, int], tuple[int, dict[str, Any], tuple[str, ...]]]:
    """Return (decided_at, changes, merged) of what was decided before, by (lead_id, version)."""
    rows = await connection.fetch(
        """
        SELECT h.lead_id, h.version, h.decided_at, h.changes, h.merged
        FROM unnest($1::uuid[], $2::bigint[]) AS w (lead_id, version) JOIN lead_history h USING (lead_id, version)
        """,
        *_columns([(receipt.lead_id, receipt.version) for _, receipt in redelivered], 2),
    )
    return {(str(row[0]), row[1]): (row[2], orjson.loads(row[3]), tuple(map(str, row[4]))) for row in rows}


def snapshot(lead: Lead) -> bytes:
    """Return a lead's attributes and provenance as JSON."""
    return orjson.dumps({"attributes": lead.attributes, "provenance": lead.provenance})


def _columns(rows: Sequence[tuple[Any, ...]], width: int) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(width)]
