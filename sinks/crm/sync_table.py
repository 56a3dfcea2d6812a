"""The table ``crm_sync``: the wanted and the synced version of each lead in each CRM.

:class:`LeasedTable` claims and releases the rows. This module defines which rows have work to do: those whose wanted
version is higher than their synced one. Neither version ever decreases.

Guarantees: methods do not deadlock. Each locks rows in the order of lead_id, except the claim, which waits for no lock.
No transaction is open while a CRM is called.

All methods raise DependencyUnavailable. Times are microseconds since 1970, UTC.
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

# Each join on lead_id is repeated as ``lead_id = ANY(...)``, so that Postgres uses the index; see LeasedTable.

_WANT = """
INSERT INTO crm_sync AS s (destination, lead_id, tenant, wanted_version, last_wanted_at, next_attempt_at)
SELECT $1, d.lead_id, d.tenant, d.version, d.decided_at, $2
FROM unnest($3::uuid[], $4::text[], $5::bigint[], $6::timestamptz[]) AS d(lead_id, tenant, version, decided_at)
ORDER BY d.lead_id
ON CONFLICT (destination, lead_id) DO UPDATE SET
    wanted_version = EXCLUDED.wanted_version,
    last_wanted_at = EXCLUDED.last_wanted_at,
    -- A rejected lead is due at once and starts with 0 attempts; a lead in backoff stays in backoff.
    attempts = CASE WHEN s.next_attempt_at = 'infinity' THEN 0 ELSE s.attempts END,
    next_attempt_at = CASE WHEN s.next_attempt_at = 'infinity' OR s.synced_version >= s.wanted_version
                           THEN EXCLUDED.next_attempt_at ELSE s.next_attempt_at END
WHERE s.wanted_version < EXCLUDED.wanted_version
"""

# Returns the leads that were merged into one of $4, have a row and are not parked. Not FOR UPDATE SKIP LOCKED: a row
# that another worker has leased must be returned too (its other columns are NULL), because its survivor must wait.
_CLAIM_LOSERS = """
WITH losers AS MATERIALIZED (
    SELECT s.lead_id, a.lead_id AS survivor_id FROM lead_aliases a
    JOIN crm_sync s ON s.destination = $1 AND s.lead_id = a.alias_id
    WHERE a.lead_id = ANY($4::uuid[]) AND s.next_attempt_at <= $2
    ORDER BY s.lead_id FOR UPDATE OF s
), claimed AS (
    UPDATE crm_sync s SET claimed_until = $3
    WHERE s.destination = $1 AND s.lead_id = ANY(ARRAY(SELECT lead_id FROM losers)) AND s.claimed_until <= $2
    RETURNING s.lead_id, s.tenant, s.wanted_version, s.attempts, s.last_error, s.remote_id
)
SELECT l.survivor_id, l.lead_id::text AS key, c.tenant, c.wanted_version, c.attempts, c.last_error, c.remote_id
FROM losers l LEFT JOIN claimed c ON c.lead_id = l.lead_id
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

# d.version: the version that was sent. wanted_version becomes at least d.version, so that a request for d.version that
# is still in Kafka is not new and does not end the parking. A rejected row ('infinity') is due at once if a newer
# version was wanted during the call.
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

_DELETE = """
DELETE FROM crm_sync s USING unnest($3::uuid[], $4::bigint[]) AS d(lead_id, wanted)
WHERE s.destination = $1 AND s.lead_id = ANY($3::uuid[]) AND s.lead_id = d.lead_id
    AND s.claimed_until = $2 AND s.wanted_version <= d.wanted
"""

# Rows that _DELETE has kept: a newer version was wanted during the retirement, because the merge was undone. The CRM
# no longer has a record of these leads.
_RESET = """
UPDATE crm_sync SET claimed_until = '-infinity', synced_version = 0, remote_id = '', attempts = 0, last_error = ''
WHERE destination = $1 AND claimed_until = $2 AND lead_id = ANY($3::uuid[])
"""

_LOCK = "SELECT FROM crm_sync WHERE destination = $1 AND lead_id = ANY($2::uuid[]) ORDER BY lead_id FOR UPDATE"

_SET_REMOTE_ID = """
UPDATE crm_sync s SET remote_id = d.remote_id FROM unnest($2::uuid[], $3::text[]) AS d(lead_id, remote_id)
WHERE s.destination = $1 AND s.lead_id = ANY($2::uuid[]) AND s.lead_id = d.lead_id
"""


@dataclass(frozen=True, slots=True)
class WantedVersion:
    """A sync request: the CRM should have ``lead_id`` at ``version`` or newer; decided at ``decided_at``."""

    lead_id: str
    tenant: str
    version: int
    decided_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncRow(ClaimedRow):
    """A claimed row of crm_sync. ``key``: the lead's id. ``wanted``: the wanted version."""

    tenant: str
    wanted: int
    remote_id: str


@dataclass(frozen=True, slots=True)
class Loser:
    """A lead that was merged into ``survivor_id`` and has a row. ``row``: None if another worker has leased it."""

    survivor_id: str
    row: SyncRow | None


@dataclass(frozen=True, slots=True)
class CanonicalLead:
    """The current canonical record of a lead. ``survivor_id``: the lead that it was merged into, or ""."""

    version: int
    survivor_id: str
    survivor_remote_id: str
    attributes: Mapping[str, Any]
    erased: bool = False


@dataclass(frozen=True, slots=True)
class RecordWritten:
    """The CRM has the lead's record as of ``Done.version``. ``remote_id``: the CRM's id of it, "" if unknown."""

    remote_id: str


@dataclass(frozen=True, slots=True)
class RecordRetired:
    """The CRM no longer has a record of the lead. ``survivors``: survivor's lead id -> new id of its CRM record."""

    survivors: Mapping[str, str] = field(default_factory=dict)


class CrmSyncTable(LeasedTable[SyncRow]):
    """The rows of one destination, such as hubspot."""

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
        """Store wanted versions, at most one per lead. A version that is not newer than the stored one is ignored."""
        columns = _columns([(w.lead_id, w.tenant, w.version, w.decided_at) for w in wanted], 4)
        async with connection(self._pool) as postgres:
            await postgres.execute(_WANT, self._scope, self._clock(), *columns)

    async def claim_losers(self, lease: Lease[SyncRow], survivors: Sequence[str]) -> list[Loser]:
        """Claim under the same lease the leads that were merged into ``survivors`` and are not in ``lease``."""
        claimed = [row.key for row in lease.rows]
        async with connection(self._pool) as postgres:
            found = await postgres.fetch(_CLAIM_LOSERS, self._scope, self._clock(), lease.until, survivors, claimed)
        return [Loser(str(r["survivor_id"]), None if r["tenant"] is None else self.read(r)) for r in found]

    async def leads(self, lead_ids: Sequence[str]) -> dict[str, CanonicalLead]:
        """Return the current canonical records of ``lead_ids``; a deleted lead is missing."""
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
        """Delete the rows of :class:`RecordRetired`, and store the synced version of :class:`RecordWritten`.

        Synced versions are stored even if the lease was lost, since they never decrease. So every key is returned.
        """
        retired = [(row, d.value) for row, d in done if isinstance(d.value, RecordRetired)]
        written = [(row.key, d.version, d.value.remote_id) for row, d in done if isinstance(d.value, RecordWritten)]
        survivors = {survivor: remote_id for _, r in retired for survivor, remote_id in r.survivors.items()}
        keys = [row.key for row, _ in done]
        async with self._locked([*survivors, *keys]) as postgres:
            if survivors:
                await postgres.execute(_SET_REMOTE_ID, self._scope, list(survivors), list(survivors.values()))
            if retired:
                wanted = [(row.key, row.wanted) for row, _ in retired]
                await postgres.execute(_DELETE, self._scope, lease.until, *_columns(wanted, 2))
                await postgres.execute(_RESET, self._scope, lease.until, [row.key for row, _ in retired])
            if written:
                await postgres.execute(_SYNCED, self._scope, self._clock(), lease.until, *_columns(written, 3))
        return keys

    async def park(self, lease: Lease[SyncRow], parked: Sequence[tuple[SyncRow, Parked, int]]) -> Collection[str]:
        """Park rows; a row that was rejected at ``Parked.version`` is due again when a newer version is wanted."""
        rows = [(row.key, p.version, p.reason.value, due_at, p.attempts) for row, p, due_at in parked]
        async with self._locked([row.key for row, _, _ in parked]) as postgres:
            found = await postgres.fetch(_PARK, self._scope, self._clock(), lease.until, *_columns(rows, 5))
        return {record["lead_id"] for record in found}

    @asynccontextmanager
    async def _locked(self, lead_ids: Sequence[str]) -> AsyncIterator[asyncpg.Connection]:
        """Run the body in a transaction in which the rows of ``lead_ids`` are locked."""
        async with transaction(self._pool) as postgres:
            await postgres.execute(_LOCK, self._scope, lead_ids)
            yield postgres


def _columns(rows: Sequence[tuple[Any, ...]], width: int) -> list[list[Any]]:
    return [[row[i] for row in rows] for i in range(width)]
