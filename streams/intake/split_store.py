"""Reads and writes what a split needs in Postgres, in the caller's transaction, and which leads are kept apart."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import asyncpg

from schemas.registry import registry
from streams.intake.event import Identity
from streams.intake.merge import TOUCHING, Touch
from streams.intake.provenance import stored_snapshot
from streams.intake.split import PastMerge

_PREFETCH = 50  # merges


class Undone(NamedTuple):
    """The merge that a split undoes, and ``created_at`` of its survivor afterwards."""

    survivor_id: str
    loser_id: str
    tenant: str
    event_id: str  # of the split
    merged_at: int
    created_at: int
    returning: Collection[tuple[str, str]]  # identities: kind, value


class SplitTables:
    """The lookups for splits, in the transaction of ``connection``."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def named_leads(self, identities: Sequence[Identity]) -> dict[Identity, str]:
        """Return the owner of each identity that is the id of a lead: the lead, or the one that it was merged into."""
        rows = await self._connection.fetch(
            """
            SELECT l.lead_id, coalesce(a.lead_id, l.lead_id) FROM leads l
            LEFT JOIN lead_aliases a ON a.alias_id = l.lead_id
            WHERE l.lead_id = ANY($1::uuid[]) AND l.tenant = $2
            """,
            [lead_id for _, _, lead_id in identities],
            identities[0][0],
        )
        owners = {str(lead_id): str(owner) for lead_id, owner in rows}
        return {identity: owners[identity[2]] for identity in identities if identity[2] in owners}

    async def past_merges(self, survivor_id: str) -> list[PastMerge]:
        """Return all merges into a lead, oldest first."""
        return [
            PastMerge(str(row[0]), row[1], stored_snapshot(row[2]), stored_snapshot(row[3]), row[4] is not None)
            async for row in self._connection.cursor(
                """
                SELECT loser_id, merged_at, survivor, loser, undone_at FROM lead_merges WHERE survivor_id = $1
                ORDER BY merged_at, loser_id
                """,
                survivor_id,
                prefetch=_PREFETCH,
            )
        ]

    async def moved_identities(self, survivor_id: str, loser_id: str, merged_at: int) -> frozenset[tuple[str, str]]:
        """Return the identities that the merge moved and that the survivor still has, as (kind, value)."""
        rows = await self._connection.fetch(
            """
            SELECT i.kind, i.value FROM lead_merges m CROSS JOIN LATERAL jsonb_array_elements(m.identities) AS e
            JOIN identities i ON (i.tenant, i.kind, i.value) = (m.tenant, e->>0, e->>1) AND i.lead_id = m.survivor_id
            WHERE m.survivor_id = $1 AND m.loser_id = $2 AND m.merged_at = $3
            """,
            survivor_id,
            loser_id,
            merged_at,
        )
        return frozenset((row[0], row[1]) for row in rows)

    async def own_touches(self, lead_id: str) -> list[Touch]:
        """Return the first and the last touch of a lead in its own history, without those of leads merged into it."""
        types = [kind.name for kind in registry().events.values() if kind.authority in TOUCHING]
        found: list[Touch] = []
        for order in ("ASC", "DESC"):
            row = await self._connection.fetchrow(
                f"""
                SELECT occurred_at, event_id, source FROM lead_history
                WHERE lead_id = $1 AND event_type = ANY($2::text[])
                ORDER BY occurred_at {order}, event_id COLLATE "C" {order} LIMIT 1
                """,  # noqa: S608 - order is a constant
                lead_id,
                types,
            )
            found += [(row[0], row[1], row[2])] if row else []
        return found

    async def split_version(self, lead_id: str, event_id: str) -> int:
        """Return the version of the merged lead that a past split made."""
        version: int = await self._connection.fetchval(
            "SELECT version FROM lead_history WHERE lead_id = $1 AND event_id = $2 AND event_type = 'lead_split'",
            lead_id,
            event_id,
        )
        return version


async def leads_apart(connection: asyncpg.Connection, lead_ids: Collection[str]) -> dict[str, frozenset[str]]:
    """Return the leads from which each of ``lead_ids`` is kept apart, itself or by a lead merged into it."""
    rows = await connection.fetch(
        """
        WITH own AS (
            SELECT w AS lead_id, w AS member FROM unnest($1::uuid[]) AS w
            UNION ALL SELECT lead_id, alias_id FROM lead_aliases WHERE lead_id = ANY($1::uuid[])
        )
        SELECT own.lead_id, array_agg(coalesce(a.lead_id, p.other_id)) FROM own
        JOIN leads_apart p ON p.lead_id = own.member LEFT JOIN lead_aliases a ON a.alias_id = p.other_id
        GROUP BY own.lead_id
        """,
        list(lead_ids),
    )
    return {str(lead_id): frozenset(map(str, others)) for lead_id, others in rows}


async def join_again(connection: asyncpg.Connection, lead_id: str) -> None:
    """Forget that leads which are one lead now were kept apart."""
    await connection.execute(
        """
        WITH own AS MATERIALIZED (
            SELECT $1::uuid AS lead_id UNION ALL SELECT alias_id FROM lead_aliases WHERE lead_id = $1::uuid
        )
        DELETE FROM leads_apart WHERE lead_id IN (SELECT lead_id FROM own) AND other_id IN (SELECT lead_id FROM own)
        """,
        lead_id,
    )


async def undo_merge(connection: asyncpg.Connection, undone: Undone, now: int) -> None:
    """Move identities and aliases back, and remember that the two leads are to be kept apart."""
    survivor, loser = undone.survivor_id, undone.loser_id
    kinds = [kind for kind, _ in undone.returning]
    values = [value for _, value in undone.returning]
    await connection.execute(_MOVE_IDENTITIES, survivor, loser, undone.tenant, kinds, values)
    await connection.execute(_MOVE_ALIASES, survivor, loser)
    await connection.execute("DELETE FROM lead_aliases WHERE alias_id = $1", loser)
    await connection.execute("UPDATE leads SET merged_into = NULL, split = true WHERE lead_id = $1", loser)
    await connection.execute(
        "UPDATE leads SET split = true, created_at = $2 WHERE lead_id = $1", survivor, undone.created_at
    )
    await connection.execute(
        """
        UPDATE lead_merges SET undone_at = $4, undone_by = $5
        WHERE survivor_id = $1 AND loser_id = $2 AND merged_at = $3
        """,
        survivor,
        loser,
        undone.merged_at,
        now,
        undone.event_id,
    )
    await connection.execute(_KEEP_APART, [survivor, loser], [loser, survivor], undone.tenant, undone.event_id, now)


_MOVE_IDENTITIES = """
UPDATE identities i SET lead_id = $2 FROM unnest($4::text[], $5::text[]) AS w (kind, value)
WHERE i.lead_id = $1 AND i.tenant = $3 AND i.kind = w.kind AND i.value = w.value
"""
# The leads that were merged into the loser before it was merged itself.
_MOVE_ALIASES = """
WITH RECURSIVE own AS (
    SELECT $2::uuid AS lead_id
    UNION SELECT l.lead_id FROM lead_aliases a JOIN leads l ON l.lead_id = a.alias_id
        JOIN own ON l.merged_into = own.lead_id WHERE a.lead_id = $1
)
UPDATE lead_aliases SET lead_id = $2 WHERE alias_id IN (SELECT lead_id FROM own) AND alias_id <> $2
"""
_KEEP_APART = """
INSERT INTO leads_apart (lead_id, other_id, tenant, event_id, since)
SELECT w.lead_id, w.other_id, $3, $4, $5 FROM unnest($1::uuid[], $2::uuid[]) AS w (lead_id, other_id)
ON CONFLICT DO NOTHING
"""
