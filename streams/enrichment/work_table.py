"""The table ``enrichment_work``: the requests that no provider could answer yet, one a lead.

:class:`LeasedTable` claims, parks and releases the rows. A claim reads the canonical lead as it is then (that of
the survivor, if the lead was merged), so a row holds no personal data and an erased lead is not looked up.

All methods raise DependencyUnavailable. Times are microseconds since 1970, UTC.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg

from infra.clock import Clock, now_us
from infra.outcomes import Reason
from infra.postgres.leased_rows import ClaimedRow, Done, Lease, Released, Subject
from infra.postgres.leased_table import LeasedTable, WorkColumns
from infra.postgres.pool import connection

# NULL: the lead was deleted, or erased since the request. An event after the erasure is a new request of the person.
_LEAD = """
(SELECT CASE WHEN lead.erased_at IS NULL OR EXISTS (
        SELECT FROM lead_history h WHERE h.lead_id IN (work.lead_id, lead.lead_id) AND h.event_id = work.event_id
            AND h.occurred_at > lead.erased_at
    ) THEN (lead.attributes || jsonb_build_object(
        'lead_id', lead.lead_id, 'tenant', lead.tenant, 'version', lead.version))::text END
 FROM leads lead WHERE lead.lead_id = COALESCE(
    (SELECT alias.lead_id FROM lead_aliases alias WHERE alias.alias_id = work.lead_id), work.lead_id)
) AS lead
"""

_CLAIM_US = 1_000_000  # upper bound of the duration of a claim, and of the difference of two workers' clocks
_SUBJECT = 'work.tenant, work.event_id, work.version, work.topic, work.partition, work."offset"'

_COLUMNS = WorkColumns(
    table="enrichment_work",
    key="lead_id",
    key_type="uuid",
    scope="queue",
    unfinished="TRUE",
    returning=f"{_SUBJECT}, work.traceparent, work.expires_at, {_LEAD}",
)
# Returns, for each request, the row that was there before. A row with the same event is a redelivery and is kept, as is
# one of a newer version. A replaced row loses its lease: a worker that has claimed it cannot delete the new one.
_ADD = """
WITH requested AS MATERIALIZED (
    SELECT * FROM unnest($2::uuid[], $3::text[], $4::text[], $5::bigint[], $6::text[], $7::int[], $8::bigint[],
                         $9::text[], $10::text[], $11::timestamptz[])
        AS r(lead_id, tenant, event_id, version, topic, partition, "offset", traceparent, reason, due_at)
), earlier AS MATERIALIZED (
    SELECT * FROM enrichment_work w WHERE w.queue = $1 AND w.lead_id = ANY($2::uuid[]) ORDER BY w.lead_id FOR UPDATE
), put AS (
    INSERT INTO enrichment_work AS w (queue, lead_id, tenant, event_id, version, topic, partition, "offset",
                                      traceparent, expires_at, last_error, next_attempt_at)
    SELECT $1, lead_id, tenant, event_id, version, topic, partition, "offset", traceparent, $12, reason, due_at
    FROM requested ORDER BY lead_id
    ON CONFLICT (queue, lead_id) DO UPDATE SET
        tenant = excluded.tenant, event_id = excluded.event_id, version = excluded.version, topic = excluded.topic,
        partition = excluded.partition, "offset" = excluded."offset", traceparent = excluded.traceparent,
        expires_at = excluded.expires_at, attempts = 0, last_error = excluded.last_error,
        next_attempt_at = excluded.next_attempt_at, claimed_until = '-infinity'
    WHERE w.version < excluded.version AND w.event_id <> excluded.event_id
)
SELECT r.lead_id::text AS key, e.tenant, e.event_id, e.version, e.topic, e.partition, e."offset"
FROM requested r JOIN earlier e USING (lead_id) WHERE e.event_id <> r.event_id
"""

_FINISH = """
WITH ours AS MATERIALIZED (
    SELECT lead_id FROM enrichment_work
    WHERE queue = $1 AND lead_id = ANY($3::uuid[]) AND claimed_until = $2 ORDER BY lead_id FOR UPDATE
)
DELETE FROM enrichment_work WHERE queue = $1 AND lead_id = ANY(ARRAY(SELECT lead_id FROM ours)) RETURNING lead_id::text
"""

_EXPIRE = f"""
WITH expired AS MATERIALIZED (
    SELECT lead_id FROM enrichment_work WHERE queue = $1 AND expires_at <= $2 AND claimed_until <= $2
    ORDER BY expires_at LIMIT $3 FOR UPDATE SKIP LOCKED
)
DELETE FROM enrichment_work work WHERE queue = $1 AND lead_id = ANY(ARRAY(SELECT lead_id FROM expired))
RETURNING work.lead_id::text AS key, work.last_error, {_SUBJECT}
"""  # noqa: S608 - constants of this module


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """A request that failed with ``reason`` and is due again at ``due_at``. ``about``: the subject of its outcomes."""

    about: Subject
    traceparent: str
    reason: Reason
    due_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkRow(ClaimedRow):
    """A claimed request. ``key``: the lead's id. ``lead``: JSON of the lead as it was at ``read_at``, "": erased."""

    traceparent: str
    expires_at: int
    lead: str
    read_at: int


@dataclass(frozen=True, slots=True)
class Expired:
    """A request that has expired and is deleted. ``last_error``: why it was not answered."""

    subject: Subject
    last_error: str


class EnrichmentWorkTable(LeasedTable[WorkRow]):
    """The open requests of all workers. ``expire_us``: microseconds after which a request is not tried again."""

    def __init__(
        self, pool: asyncpg.Pool, *, lease_s: float, expire_us: int, clock: Clock = now_us, queue: str = "waterfall"
    ) -> None:
        super().__init__(pool, _COLUMNS, queue, lease_s=lease_s, clock=clock)
        self._expire_us = expire_us

    def read(self, record: Any) -> WorkRow:
        """See :class:`LeasedTable`."""
        return WorkRow(
            key=record["key"],
            attempts=record["attempts"],
            last_error=record["last_error"],
            subject=_subject(record),
            traceparent=record["traceparent"],
            expires_at=record["expires_at"],
            lead=record["lead"] or "",
            read_at=self._clock() - _CLAIM_US,
        )

    def overdue(self, row: WorkRow) -> Released:  # noqa: ARG002
        """Release the row: only waits for a connection or the rate limit take so long. The lookup goes on."""
        return Released()

    async def add(self, requests: Sequence[OpenRequest]) -> dict[str, Subject]:
        """Insert ``requests``, each of another lead. An older request about the same lead is replaced.

        Returns:
            Lead id -> the other request about it that was there before: replaced if its version is lower than that of
            the new one; otherwise the new one was not stored.

        """
        columns: tuple[list[Any], ...] = (
            [each.about.lead_id for each in requests],
            [each.about.tenant for each in requests],
            [each.about.event_id for each in requests],
            [each.about.version for each in requests],
            [each.about.source[0] for each in requests],
            [each.about.source[1] for each in requests],
            [each.about.source[2] for each in requests],
            [each.traceparent for each in requests],
            [each.reason.value for each in requests],
            [each.due_at for each in requests],
        )
        async with connection(self._pool) as postgres:
            earlier = await postgres.fetch(_ADD, self._scope, *columns, self._clock() + self._expire_us)
        return {record["key"]: _subject(record) for record in earlier}

    async def finish(self, lease: Lease[WorkRow], done: Sequence[tuple[WorkRow, Done]]) -> Collection[str]:
        """Delete the rows whose lease is still held; return their keys."""
        async with connection(self._pool) as postgres:
            deleted = await postgres.fetch(_FINISH, self._scope, lease.until, [row.key for row, _ in done])
        return {record["lead_id"] for record in deleted}

    async def expire(self, limit: int) -> list[Expired]:
        """Delete up to ``limit`` expired requests that no worker has leased, and return them."""
        async with connection(self._pool) as postgres:
            records = await postgres.fetch(_EXPIRE, self._scope, self._clock(), limit)
        return [Expired(_subject(record), record["last_error"]) for record in records]


def _subject(record: Any) -> Subject:
    source = (record["topic"], record["partition"], record["offset"])
    return Subject(record["tenant"], record["event_id"], record["key"], record["version"], source)
