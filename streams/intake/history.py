"""Looks up what the history of leads says: the newest values of their fields, and their touches."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import asyncpg
import orjson

from schemas.registry import registry
from streams.intake.echo import PastValues
from streams.intake.merge import REPORTING, TOUCHING, Touch
from streams.intake.part_size import Cut
from streams.intake.touches import Outermost

_PREFETCH = 250  # rows


async def past_values(
    connection: asyncpg.Connection, lead_ids: Collection[str], fields: Collection[str], max_bytes: int
) -> dict[str, list[PastValues]]:
    """Return the newest changes of ``fields`` of stored leads and of the leads that were merged into them.

    They are in the order of each lead's versions: at most those of its latest 500 versions, and of so many of them
    as fit into ``max_bytes``.

    Raises:
        Cut: the changes of several leads do not fit.

    """
    newest: dict[str, list[PastValues]] = {lead_id: [] for lead_id in lead_ids}
    if not newest:
        return newest
    size = 0
    async for lead_id, alias_id, at, decided_at, event_type, merging, changes in connection.cursor(
        """
        WITH own AS (
            SELECT w AS lead_id, w AS alias_id FROM unnest($1::uuid[]) AS w
            UNION ALL SELECT lead_id, alias_id FROM lead_aliases WHERE lead_id = ANY($1::uuid[])
        )
        SELECT own.lead_id, own.alias_id, h.occurred_at, h.decided_at, h.event_type, h.merged <> '{}',
            (SELECT jsonb_object_agg(key, value) FROM jsonb_each(h.changes) WHERE key = ANY($2::text[]))
        FROM own CROSS JOIN LATERAL (
            SELECT * FROM lead_history WHERE lead_id = own.alias_id ORDER BY version DESC LIMIT 500
        ) AS h WHERE h.changes ?| $2::text[] OR h.merged <> '{}'
        """,
        list(newest),
        list(fields),
        prefetch=_PREFETCH,
    ):
        size += len(changes or "")
        if size > max_bytes:
            if len(newest) > 1:
                raise Cut(1 / len(newest))
            break
        kind = registry().events.get(event_type)
        reported = kind is not None and kind.authority == REPORTING
        values = orjson.loads(changes) if changes else {}
        newest[str(lead_id)].append(PastValues(str(alias_id), at, decided_at, values, reported, merging))
    return {lead_id: changes[::-1] for lead_id, changes in newest.items()}


async def outermost_touches(
    connection: asyncpg.Connection, lead_ids: Collection[str], after: Sequence[int]
) -> dict[str, list[Touch]]:
    """Return touches from the history of stored leads and of the leads that were merged into them.

    Args:
        lead_ids: the leads.
        after: times, rising. The first and the last touch after each of them are returned, as
            :class:`streams.intake.touches.Outermost` selects them.

    """
    if not lead_ids:
        return {}
    found = {lead_id: Outermost(after) for lead_id in lead_ids}
    async for lead_id, *row in connection.cursor(
        """
        WITH own AS (
            SELECT w AS lead_id, w AS alias_id FROM unnest($1::uuid[]) AS w
            UNION ALL SELECT lead_id, alias_id FROM lead_aliases WHERE lead_id = ANY($1::uuid[])
        )
        SELECT own.lead_id, h.occurred_at, h.event_id, h.source
        FROM own JOIN lead_history h ON h.lead_id = own.alias_id
        WHERE h.event_type = ANY($2::text[]) AND h.occurred_at > $3
        """,
        list(found),
        [kind.name for kind in registry().events.values() if kind.authority in TOUCHING],
        after[0],
        prefetch=_PREFETCH,
    ):
        found[str(lead_id)].add((row[0], row[1], row[2]))
    return {lead_id: outermost.touches for lead_id, outermost in found.items()}
