"""Removes erased leads from the tables of the other stages in Postgres: the store ``work``.

- Cached results of providers are deleted, and the values of versions that were too many for intake's transaction.
- Open enrichment requests and waiting messages are made due at once, so that their own stage reports them as skipped
  and deletes the content of the messages. What a stage that is not running leaves for a minute is deleted here.
- Each CRM that has the lead gets a row of ``erasures``; CRM sync removes the record and completes it.
"""

from __future__ import annotations

import asyncpg

from infra.clock import Clock, now_us
from infra.postgres.leased_rows import Done, Lease, Released
from infra.postgres.pool import connection
from operations.erasure_table import ErasureRow

_WAIT_US = 60_000_000
_AGAIN_S = 1.0

_FORGET_RESULTS = "DELETE FROM enrichment_results WHERE lead_id = ANY($1::uuid[])"
_FORGET_HISTORY = """
UPDATE lead_history h SET changes = '{}', context = NULL
FROM (SELECT lead_id, version, month FROM lead_history WHERE lead_id = ANY($1::uuid[]) AND occurred_at <= $2
      AND (changes <> '{}' OR context IS NOT NULL) LIMIT 5000) AS w
WHERE h.lead_id = w.lead_id AND h.version = w.version AND h.month = w.month
"""
# Rows that a worker has locked are changed by it, or at the next attempt.
_DUE = (
    """
    UPDATE enrichment_work SET next_attempt_at = now() WHERE (queue, lead_id) IN (
        SELECT queue, lead_id FROM enrichment_work WHERE lead_id = ANY($1::uuid[]) AND next_attempt_at > now()
        FOR UPDATE SKIP LOCKED
    )
    """,
    """
    UPDATE messages_sent SET next_attempt_at = now() WHERE message_id IN (
        SELECT message_id FROM messages_sent WHERE lead_id = ANY($1::uuid[]) AND request IS NOT NULL
            AND next_attempt_at > now() AND claimed_until <= now() FOR UPDATE SKIP LOCKED
    )
    """,
    """
    UPDATE crm_sync SET next_attempt_at = now() WHERE (destination, lead_id) IN (
        SELECT destination, lead_id FROM crm_sync WHERE lead_id = ANY($1::uuid[]) AND wanted_version > synced_version
            AND next_attempt_at > now() AND claimed_until <= now() FOR UPDATE SKIP LOCKED
    )
    """,
)
# Messages of an event after the erasure are the person's new requests.
_BEFORE = """
lead_id = ANY($1::uuid[]) AND request IS NOT NULL AND NOT EXISTS (
    SELECT FROM lead_history h WHERE h.lead_id = ANY($1::uuid[]) AND h.event_id = m.event_id AND h.occurred_at > $2
)
"""
_WAITING = f"SELECT count(*) FROM messages_sent m WHERE {_BEFORE}"  # noqa: S608 - constants of this module
_SKIP = f"""
UPDATE messages_sent m SET state = 'skipped', last_error = 'erased', request = NULL WHERE {_BEFORE}
"""  # noqa: S608 - constants of this module
_ADD_CRMS = """
INSERT INTO erasures (store, lead_id, tenant, event_id, version, erased_at, decided_at, next_attempt_at)
SELECT 'crm-' || s.destination, s.lead_id, $2::text, $3::text, $4::bigint, $5::timestamptz, $6::timestamptz,
       $6::timestamptz FROM crm_sync s
WHERE s.lead_id = ANY($1::uuid[]) AND (s.remote_id <> '' OR s.wanted_version > s.synced_version)
ORDER BY 1, 2
ON CONFLICT (store, lead_id) DO UPDATE SET event_id = excluded.event_id, version = excluded.version,
    erased_at = excluded.erased_at, decided_at = excluded.decided_at, done_at = NULL, detail = ''
WHERE erasures.decided_at < excluded.decided_at
"""


class WorkErasure:
    """The handler of the engine. ``clock``: current time."""

    def __init__(self, pool: asyncpg.Pool, clock: Clock = now_us) -> None:
        self._pool = pool
        self._clock = clock

    async def handle(self, lease: Lease[ErasureRow]) -> list[tuple[ErasureRow, Done | Released]]:
        """Remove the lead of ``lease``; return its result.

        Raises:
            DependencyUnavailable: Postgres is unavailable.

        """
        (row,) = lease.rows
        return [(row, await self._remove(row))]

    async def _remove(self, row: ErasureRow) -> Done | Released:
        own = row.lead_ids
        async with connection(self._pool) as postgres:  # no transaction: no statement holds the locks of another one
            while await postgres.execute(_FORGET_HISTORY, own, row.erased_at) != "UPDATE 0":
                pass
            await postgres.execute(_FORGET_RESULTS, own)
            for statement in _DUE:
                await postgres.execute(statement, own)
            about = (row.subject.tenant, row.subject.event_id, row.version, row.erased_at, row.decided_at)
            await postgres.execute(_ADD_CRMS, own, *about)
            if not await postgres.fetchval(_WAITING, own, row.erased_at):
                return Done(None, detail="cached results deleted, messages cancelled")
            if self._clock() < row.decided_at + _WAIT_US:
                return Released(_AGAIN_S)
            await postgres.execute(_SKIP, own, row.erased_at)
        return Done(None, detail="cached results deleted, messages cancelled")
