"""``crm_sync`` in Postgres: which version of each lead a CRM should have, and which it has.

Claiming, parking and releasing are the engine's (:class:`LeasedTable`); here is what is CRM sync's own: a row is
unfinished while it wants a higher version than is synced, and versions never go down. Rows are locked in the order of
their lead_id by every method, except by the claim, which waits for no lock: so they cannot deadlock. No transaction is
open while a CRM is called. All methods raise DependencyUnavailable. Times are microseconds since 1970 UTC.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import orjson

from infra.clock import Clock, now_us
from infra.postgres.leased_rows import ClaimedRow, Done, Lease, Parked, Subject
from infra.postgres.leased_table import LeasedTable, WorkColumns
from infra.postgres.pool import connection, transaction

_COLUMNS = WorkColumns(
    table="crm_sync",
    key="lead_id",
    key_type="uuid",
    scope="destination",
    unfinished="wanted_version > synced_version",
    returning="work.tenant, work.wanted_version, work.remote_id",
)

# ``lead_id = ANY(...)`` stands beside each join on lead_id so that the rows are found by index, see LeasedTable.

_WANT = """
INSERT INTO crm_sync AS s (destination, lead_id, tenant, wanted_version, last_wanted_at, next_attempt_at)
SELECT $1, d.lead_id, d.tenant, d.version, d.decided_at, $2
FROM unnest($3::uuid[], $4::text[], $5::bigint[], $6::timestamptz[]) AS d(lead_id, tenant, version, decided_at)
ORDER BY d.lead_id
ON CONFLICT (destination, lead_id) DO UPDATE SET
    wanted_version = EXCLUDED.wanted_version,
    last_wanted_at = EXCLUDED.last_wanted_at,
    -- A rejected lead gets a new chance; one that waits for its backoff goes on waiting.
    attempts = CASE WHEN s.next_attempt_at = 'infinity' THEN 0 ELSE s.attempts END,
    next_attempt_at = CASE WHEN s.next_attempt_at = 'infinity' OR s.synced_version >= s.wanted_version
                           THEN EXCLUDED.next_attempt_at ELSE s.next_attempt_at END
WHERE s.wanted_version < EXCLUDED.wanted_version
"""

# Leads that were merged into one of $4, still have a row here and are not parked. Not FOR UPDATE SKIP LOCKED: one that
# another worker has leased is returned too, as not ours, so that the survivor waits for it.
_CLAIM_LOSERS = """
WITH losers AS MATERIALIZED (
    SELECT s.lead_id, a.lead_id AS survivor_id FROM lead_aliases a
    JOIN crm_sync s ON s.destination = $1 AND s.lead_id = a.alias_id
    WHERE a.lead_id = ANY($4::uuid[]) AND s.next_attempt_at <= $2
    ORDER BY s.lead_id FOR UPDATE OF s
), ours AS (
    UPDATE crm_sync s SET claimed_until = $3
    WHERE s.destination = $1 AND s.lead_id = ANY(ARRAY(SELECT lead_id FROM losers)) AND s.claimed_until <= $2
    RETURNING s.lead_id, s.tenant, s.wanted_version, s.attempts, s.last_error, s.remote_id
)
SELECT l.survivor_id, l.lead_id::text AS key, o.tenant, o.wanted_version, o.attempts, o.last_error, o.remote_id
FROM losers l LEFT JOIN ours o ON o.lead_id = l.lead_id
WHERE l.lead_id <> ALL($5::uuid[])
"""

_LEADS = """
SELECT l.lead_id, l.version, l.merged_into, l.attributes::text AS attributes, l.erased_at IS NOT NULL AS erased,
       CASE WHEN l.merged_into IS NOT NULL THEN
           (SELECT s.remote_id FROM crm_sync s WHERE s.destination = $1 AND s.lead_id = l.merged_into)
       END AS survivor_remote_id
FROM leads l WHERE l.lead_id = ANY($2::uuid[])
"""

_SYNCED = """
UPDATE crm_sync s SET
    synced_version = GREATEST(s.synced_version, d.version), wanted_version = GREATEST(s.wanted_version, d.version),
    remote_id = CASE WHEN d.remote_id = '' THEN s.remote_id ELSE d.remote_id END,
    attempts = 0, last_error = '', synced_at = $2,
    next_attempt_at = CASE WHEN s.next_attempt_at > $2 THEN $2 ELSE s.next_attempt_at END,
    claimed_until = CASE WHEN s.claimed_until = $3 THEN '-infinity' ELSE s.claimed_until END
FROM unnest($4::uuid[], $5::bigint[], $6::text[]) AS d(lead_id, version, remote_id)
WHERE s.destination = $1 AND s.lead_id = ANY($4::uuid[]) AND s.lead_id = d.lead_id
"""

# Tried at version v: a request for v that is still under way in Kafka is no new one, hence the new wanted_version. What
# is parked until a newer version is wanted, and whose newer version was wanted during the call, is due at once.
_PARK = """
UPDATE crm_sync s SET
    attempts = s.attempts + d.attempts, last_error = d.reason, claimed_until = '-infinity',
    wanted_version = GREATEST(s.wanted_version, d.version),
    next_attempt_at = CASE WHEN d.due_at = 'infinity' AND s.wanted_version > d.version THEN $2 ELSE d.due_at END
FROM unnest($4::uuid[], $5::bigint[], $6::text[], $7::timestamptz[], $8::int[])
    AS d(lead_id, version, reason, due_at, attempts)
WHERE s.destination = $1 AND s.lead_id = ANY($4::uuid[]) AND s.lead_id = d.lead_id AND s.claimed_until = $3
RETURNING s.lead_id::text
"""

_FORGET = """
DELETE FROM crm_sync s USING unnest($3::uuid[], $4::bigint[]) AS d(lead_id, wanted)
WHERE s.destination = $1 AND s.lead_id = ANY($3::uuid[]) AND s.lead_id = d.lead_id
    AND s.claimed_until = $2 AND s.wanted_version <= d.wanted
"""

# Wanted again while its record was being retired (a merge taken back): from here on it is a lead without a record.
_START_OVER = """
UPDATE crm_sync SET claimed_until = '-infinity', synced_version = 0, remote_id = '', attempts = 0, last_error = ''
WHERE destination = $1 AND claimed_until = $2 AND lead_id = ANY($3::uuid[])
"""

_LOCK = "SELECT FROM crm_sync WHERE destination = $1 AND lead_id = ANY($2::uuid[]) ORDER BY lead_id FOR UPDATE"

_ADOPTED = """
UPDATE crm_sync s SET remote_id = d.remote_id FROM unnest($2::uuid[], $3::text[]) AS d(lead_id, remote_id)
WHERE s.destination = $1 AND s.lead_id = ANY($2::uuid[]) AND s.lead_id = d.lead_id
"""


@dataclass(frozen=True, slots=True)
class WantedVersion:
    """Lead ``lead_id`` is now at ``version``, decided at ``decided_at``."""

    lead_id: str
    tenant: str
    version: int
    decided_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncRow(ClaimedRow):
    """A claimed row of crm_sync; ``key`` is the lead's id."""

    tenant: str
    wanted: int
    remote_id: str


@dataclass(frozen=True, slots=True)
class Loser:
    """A lead merged into ``survivor_id`` that has a row; ``row`` is None while another worker has it leased."""

    survivor_id: str
    row: SyncRow | None


@dataclass(frozen=True, slots=True)
class CanonicalLead:
    """A lead as the canonical record has it now."""

    version: int
    survivor_id: str
    survivor_remote_id: str
    attributes: Mapping[str, Any]
    erased: bool = False


@dataclass(frozen=True, slots=True)
class Written:
    """A lead's record was written as of ``Done.version``."""

    remote_id: str


@dataclass(frozen=True, slots=True)
class Retired:
    """A lead's record is gone. ``adopted``: survivor -> the id of its record from now on."""

    adopted: Mapping[str, str] = field(default_factory=dict)


class CrmSyncTable(LeasedTable[SyncRow]):
    """The rows of one destination."""

    def __init__(self, pool: asyncpg.Pool, destination: str, *, lease_s: float, clock: Clock = now_us) -> None:
        super().__init__(pool, _COLUMNS, destination, lease_s=lease_s, clock=clock)

    def read(self, record: Any) -> SyncRow:
        """See :class:`LeasedTable`."""
        subject = Subject(record["tenant"], lead_id=record["key"], version=record["wanted_version"])
        return SyncRow(
            key=record["key"],
            attempts=record["attempts"],
            last_error=record["last_error"],
            subject=subject,
            tenant=record["tenant"],
            wanted=record["wanted_version"],
            remote_id=record["remote_id"],
        )

    async def want(self, wanted: Sequence[WantedVersion]) -> None:
        """Want at least these versions; at most one a lead. What is older than what is wanted changes nothing."""
        columns = _columns([(w.lead_id, w.tenant, w.version, w.decided_at) for w in wanted], 4)
        async with connection(self._pool) as postgres:
            await postgres.execute(_WANT, self._scope, self._clock(), *columns)

    async def claim_losers(self, lease: Lease[SyncRow], survivors: Sequence[str]) -> list[Loser]:
        """Claim, under the same lease, what was merged into ``survivors`` and is not in ``lease`` already."""
        ours = [row.key for row in lease.rows]
        async with connection(self._pool) as postgres:
            found = await postgres.fetch(_CLAIM_LOSERS, self._scope, self._clock(), lease.until, survivors, ours)
        return [Loser(str(r["survivor_id"]), None if r["tenant"] is None else self.read(r)) for r in found]

    async def leads(self, lead_ids: Sequence[str]) -> dict[str, CanonicalLead]:
        """Return the newest state of ``lead_ids``; a lead that was deleted is missing."""
        async with connection(self._pool) as postgres:
            rows = await postgres.fetch(_LEADS, self._scope, lead_ids)
        return {
            str(row["lead_id"]): CanonicalLead(
                row["version"],
                str(row["merged_into"] or ""),
                row["survivor_remote_id"] or "",
                orjson.loads(row["attributes"]),
                row["erased"],
            )
            for row in rows
        }

    async def finish(self, lease: Lease[SyncRow], done: Sequence[tuple[SyncRow, Done]]) -> Collection[str]:
        """Drop the rows that are :class:`Retired`, and write back those that are :class:`Written`.

        What the CRM has is noted whoever has the lease by now: versions only grow. So every key is returned.
        """
        retired = [(row, d.value) for row, d in done if isinstance(d.value, Retired)]
        written = [(row.key, d.version, d.value.remote_id) for row, d in done if isinstance(d.value, Written)]
        adopted = {survivor: remote_id for _, r in retired for survivor, remote_id in r.adopted.items()}
        keys = [row.key for row, _ in done]
        async with self._locked([*adopted, *keys]) as postgres:
            if adopted:
                await postgres.execute(_ADOPTED, self._scope, list(adopted), list(adopted.values()))
            if retired:
                gone = [(row.key, row.wanted) for row, _ in retired]
                await postgres.execute(_FORGET, self._scope, lease.until, *_columns(gone, 2))
                await postgres.execute(_START_OVER, self._scope, lease.until, [row.key for row, _ in retired])
            if written:
                await postgres.execute(_SYNCED, self._scope, self._clock(), lease.until, *_columns(written, 3))
        return keys

    async def park(self, lease: Lease[SyncRow], parked: Sequence[tuple[SyncRow, Parked, int]]) -> Collection[str]:
        """Park rows, those that are rejected at ``Parked.version`` until a newer one is wanted."""
        rows = [(row.key, p.version, p.reason.value, due_at, p.attempts) for row, p, due_at in parked]
        async with self._locked([row.key for row, _, _ in parked]) as postgres:
            found = await postgres.fetch(_PARK, self._scope, self._clock(), lease.until, *_columns(rows, 5))
        return {record["lead_id"] for record in found}

    @asynccontextmanager
    async def _locked(self, lead_ids: Sequence[str]) -> AsyncIterator[asyncpg.Connection]:
        """Run the body in a transaction that has locked the rows in the order of their lead_id."""
        async with transaction(self._pool) as postgres:
            await postgres.execute(_LOCK, self._scope, lead_ids)
            yield postgres


def _columns(rows: Sequence[tuple[Any, ...]], width: int) -> list[list[Any]]:
    return [[row[i] for row in rows] for i in range(width)]
