"""The table ``erasures`` as leased work: one row a lead and store, written by intake with the erasure.

All methods raise DependencyUnavailable. Times are microseconds since 1970, UTC.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg

from infra import metrics
from infra.clock import Clock, now_us
from infra.postgres.leased_rows import ClaimedRow, Done, Lease, Subject
from infra.postgres.leased_table import LeasedTable, WorkColumns
from infra.postgres.pool import connection

_COLUMNS = WorkColumns(
    table="erasures",
    key="lead_id",
    key_type="uuid",
    scope="store",
    unfinished="done_at IS NULL",
    returning="work.tenant, work.event_id, work.version, work.erased_at, work.decided_at, "
    "ARRAY(SELECT alias_id FROM lead_aliases a WHERE a.lead_id = work.lead_id) AS aliases",
)
_FINISH = """
WITH ours AS MATERIALIZED (
    SELECT lead_id FROM erasures WHERE store = $1 AND lead_id = ANY($3::uuid[]) AND claimed_until = $2
    ORDER BY lead_id FOR UPDATE
)
UPDATE erasures e SET done_at = $5, claimed_until = '-infinity', detail = d.detail, last_error = ''
FROM unnest($3::uuid[], $4::text[]) AS d (lead_id, detail)
WHERE e.store = $1 AND e.lead_id = ANY(ARRAY(SELECT lead_id FROM ours)) AND e.lead_id = d.lead_id
RETURNING e.lead_id::text
"""


_OPEN = """
SELECT store, extract(epoch FROM now() - min(decided_at) FILTER (WHERE done_at IS NULL))::float8 AS age
FROM erasures WHERE done_at IS NULL OR done_at > now() - interval '1 hour' GROUP BY store
"""


async def measure_open(pool: asyncpg.Pool) -> None:
    """Set the metric of open erasures.

    Raises:
        DependencyUnavailable: Postgres is unavailable.

    """
    async with connection(pool) as postgres:
        rows = await postgres.fetch(_OPEN)
    for store, age in rows:
        metrics.ERASURE_OPEN.labels(store).set(age or 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasureRow(ClaimedRow):
    """A claimed row. ``key``: the lead's id. ``aliases``: the leads that were merged into it."""

    version: int
    erased_at: int
    decided_at: int
    aliases: Sequence[str]

    @property
    def lead_ids(self) -> list[str]:
        """The ids under which something can be stored about the person."""
        return [self.key, *self.aliases]


class ErasuresTable(LeasedTable[ErasureRow]):
    """The rows of one store."""

    def __init__(self, pool: asyncpg.Pool, store: str, *, lease_s: float, clock: Clock = now_us) -> None:
        super().__init__(pool, _COLUMNS, store, lease_s=lease_s, clock=clock)

    def read(self, record: Any) -> ErasureRow:
        """See :class:`LeasedTable`."""
        return ErasureRow(
            key=record["key"],
            attempts=record["attempts"],
            last_error=record["last_error"],
            subject=Subject(record["tenant"], record["event_id"], record["key"], record["version"]),
            version=record["version"],
            erased_at=record["erased_at"],
            decided_at=record["decided_at"],
            aliases=[str(alias) for alias in record["aliases"]],
        )

    async def finish(self, lease: Lease[ErasureRow], done: Sequence[tuple[ErasureRow, Done]]) -> Collection[str]:
        """Record that the leads are removed. A row that was erased again since has lost its lease and stays due."""
        keys, details = [row.key for row, _ in done], [each.detail for _, each in done]
        async with connection(self._pool) as postgres:
            found = await postgres.fetch(_FINISH, self._scope, lease.until, keys, details, self._clock())
        return {record["lead_id"] for record in found}
