"""Writes the rows of a decision to Postgres by COPY and ``unnest``, in the caller's transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from typing import Any

import asyncpg
import orjson

from infra.clock import to_datetime
from streams.intake.decision import FILTERED, Change, Decision, LeadRow, Merge
from streams.intake.event import MERGE, Identity
from streams.intake.identity import Refused
from streams.intake.split_store import join_again, undo_merge

_INSERTED = LeadRow._fields.index("merged_into")  # a new lead has not been merged


async def insert_bindings(connection: asyncpg.Connection, bindings: Mapping[Identity, str]) -> None:
    """Insert new identities.

    Raises:
        UniqueViolationError: another worker has inserted one of them since it was looked up.

    """
    if bindings:
        rows = sorted((*identity, lead_id) for identity, lead_id in bindings.items())
        await connection.copy_records_to_table(
            "identities", records=rows, columns=["tenant", "kind", "value", "lead_id"]
        )


async def write_decision(connection: asyncpg.Connection, decision: Decision) -> None:
    """Write leads, merges, receipts and history.

    Raises:
        UniqueViolationError: another worker has accepted one of the events since its receipt was looked up.

    """
    if not decision.accepted:
        return
    await _merge(connection, decision.merges)
    await _insert_leads(connection, decision.inserted)
    await _update_leads(connection, decision.updated)
    month = to_datetime(decision.now).date().replace(day=1)
    if decision.undone:
        await undo_merge(connection, decision.undone, decision.now)
    # A split changes two leads by one event: its receipt is about the first, the survivor.
    await _insert_receipts(connection, decision.accepted[:1] if decision.undone else decision.accepted, month)
    await _insert_history(connection, decision.accepted, month)
    if decision.merges and decision.accepted[0].event.type.name == MERGE:
        await join_again(connection, decision.accepted[0].lead_id)


async def insert_refused(connection: asyncpg.Connection, refused: Sequence[Refused], now: int) -> list[Refused]:
    """Insert refused identities; return those that were not known."""
    known = {(each.lead_id, each.identity[1], _refused_value(each)): each for each in refused}
    if not known:
        return []
    rows = [
        (*key, each.identity[0], each.holder or None, each.why, each.event.event_id)
        for key, each in sorted(known.items())
    ]
    found = await connection.fetch(
        """
        INSERT INTO merge_reviews (lead_id, kind, value, tenant, holder_id, why, event_id, refused_at)
        SELECT *, $8 FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::uuid[], $6::text[], $7::text[])
        ON CONFLICT DO NOTHING RETURNING lead_id, kind, value
        """,
        *columns_of(rows, 7),
        now,
    )
    return [known[str(row[0]), row[1], row[2]] for row in found]


def _refused_value(refused: Refused) -> str:
    """Return the identity, or "" for all that exceed a cap, which may be many."""
    return "" if refused.why == "cap" else refused.identity[2]


async def _insert_leads(connection: asyncpg.Connection, leads: Sequence[LeadRow]) -> None:
    if leads:
        columns = [*LeadRow._fields[:_INSERTED], *FILTERED]
        rows = [(*lead[:_INSERTED], *lead.filtered) for lead in leads]
        await connection.copy_records_to_table("leads", records=rows, columns=columns)


async def _update_leads(connection: asyncpg.Connection, leads: Sequence[LeadRow]) -> None:
    """Update locked leads, except created_at and merged_into, which :func:`_merge` updates."""
    rows = [(lead.lead_id, lead.version, lead.attributes, lead.provenance, lead.erased_at) for lead in leads]
    if rows:
        await connection.execute(
            """
            UPDATE leads SET version = w.v, updated_at = $6, attributes = w.a, provenance = w.p, erased_at = w.e,
                email = w.a->>'email', status = w.a->>'status', owner = w.a->>'owner', region = w.a->>'region',
                score = (w.a->>'score')::float8
            FROM unnest($1::uuid[], $2::bigint[], $3::jsonb[], $4::json[], $5::timestamptz[]) AS w (l, v, a, p, e)
            WHERE lead_id = w.l
            """,
            *columns_of(rows, 5),
            leads[0].updated_at,
        )


async def _insert_receipts(connection: asyncpg.Connection, changes: Sequence[Change], month: date) -> None:
    await connection.copy_records_to_table(
        "receipts",
        records=[
            (c.event.key, month, *c.event.coordinates, c.lead_id, c.version, c.event.content)
            for c in sorted(changes, key=lambda c: c.event.key)
        ],
        columns=["key", "month", "topic", "partition", "offset", "lead_id", "version", "content"],
    )


async def _insert_history(connection: asyncpg.Connection, changes: Sequence[Change], month: date) -> None:
    columns = ["lead_id", "version", "month", "decided_at", "tenant", "event_id", "event_type", "source", "occurred_at"]
    columns += ["changes", "context"]
    plain = [_history(change, month) for change in changes if not change.merged]
    await connection.copy_records_to_table("lead_history", records=plain, columns=columns)
    if len(plain) < len(changes):
        # Apart, because an array is expensive to write, and merges are rare.
        merging = [(*_history(change, month), [*change.merged]) for change in changes if change.merged]
        await connection.copy_records_to_table("lead_history", records=merging, columns=[*columns, "merged"])


def _history(change: Change, month: date) -> tuple[Any, ...]:
    event = change.event
    return (
        *(change.lead_id, change.version, month, change.decided_at, event.tenant, event.event_id, event.type.name),
        *(event.source, event.at, change.changes, event.context or None),
    )


async def _merge(connection: asyncpg.Connection, merges: Sequence[Merge]) -> None:
    """Move the losers' identities and aliases to the survivors, and store the data that is needed to undo that."""
    if not merges:
        return
    pairs = columns_of([(merge.loser_id, merge.survivor_id) for merge in merges], 2)
    moved: dict[str, list[list[str]]] = {merge.loser_id: [] for merge in merges}
    for row in await connection.fetch(_MOVE_IDENTITIES, *pairs):
        moved[str(row[0])].append([row[1], row[2]])
    for statement in _MERGE:
        await connection.execute(statement, *pairs)
    rows = [(*merge, orjson.dumps(moved[merge.loser_id]).decode()) for merge in merges]
    columns = [*Merge._fields, "identities"]
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


def columns_of(rows: Iterable[tuple[Any, ...]], width: int) -> list[list[Any]]:
    """Return ``rows`` as ``width`` columns, for ``unnest``."""
    found = [list(column) for column in zip(*rows, strict=True)]
    return found or [[] for _ in range(width)]
