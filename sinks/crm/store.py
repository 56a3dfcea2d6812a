"""``crm_sync`` in Postgres: what a CRM should have, what it has, and who has which lead in hand.

Every method is one statement or one transaction, none is open while a CRM is called. Rows are locked in the order of
their lead_id by all methods, except the claim, which waits for no lock: so they cannot deadlock.

A claim is a lease: rows are ours until ``Claim.until``, unless given back before. ``Claim.until`` is also the token: a
worker whose lease ran out changes nothing about parking or leases of rows that another has claimed since. Clocks of
workers on different machines may differ by up to half the lease, see :mod:`sinks.crm.reconciler`.

All methods raise DependencyAway when Postgres is away. Times are microseconds since 1970 UTC.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import orjson

from infra.outcomes import Reason
from infra.postgres.pool import connection, transaction

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NEVER = -1  # next_at of a lead that is parked until a newer version is wanted

# ``lead_id = ANY(...)`` stands beside each join on lead_id so that the rows are found by index: joined to an unnest
# alone, the planner may read the whole table (measured at 50,000 leads: 34 ms against 3 ms a batch).

_WANT = """
INSERT INTO crm_sync AS s (destination, lead_id, tenant, wanted_version, last_wanted_at, next_attempt_at)
SELECT $1, d.lead_id, d.tenant, d.version, d.decided_at, $2
FROM unnest($3::uuid[], $4::text[], $5::bigint[], $6::timestamptz[]) AS d(lead_id, tenant, version, decided_at)
ORDER BY d.lead_id
ON CONFLICT (destination, lead_id) DO UPDATE SET
    wanted_version = EXCLUDED.wanted_version,
    last_wanted_at = EXCLUDED.last_wanted_at,
    -- A rejected lead gets a new chance; one that waits for a destination in trouble goes on waiting.
    attempts = CASE WHEN s.next_attempt_at = 'infinity' THEN 0 ELSE s.attempts END,
    next_attempt_at = CASE WHEN s.next_attempt_at = 'infinity' OR s.synced_version >= s.wanted_version
                           THEN EXCLUDED.next_attempt_at ELSE s.next_attempt_at END
WHERE s.wanted_version < EXCLUDED.wanted_version
"""

_CLAIM = """
WITH due AS MATERIALIZED (
    SELECT lead_id FROM crm_sync
    WHERE destination = $1 AND wanted_version > synced_version AND next_attempt_at <= $2 AND claimed_until <= $2
    ORDER BY next_attempt_at LIMIT $4 FOR UPDATE SKIP LOCKED
)
UPDATE crm_sync s SET claimed_until = $3 WHERE s.destination = $1 AND s.lead_id = ANY(ARRAY(SELECT lead_id FROM due))
RETURNING s.lead_id, s.tenant, s.wanted_version, s.attempts, s.last_error, s.remote_id
"""

# Leads that were merged into one of $4, still have a row here and are not parked. Not FOR UPDATE SKIP LOCKED: one that
# is in another worker's hands is returned too, as not ours, so that the survivor waits for it.
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
SELECT l.survivor_id, l.lead_id, o.tenant, o.wanted_version, o.attempts, o.last_error, o.remote_id
FROM losers l LEFT JOIN ours o ON o.lead_id = l.lead_id
WHERE l.lead_id <> ALL($5::uuid[])
"""

_LEADS = """
SELECT l.lead_id, l.version, l.merged_into, l.attributes::text AS attributes,
       l.provenance -> '_erased' IS NOT NULL AS erased,
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

# Rejected at version v: a wish for v that is still under way in Kafka is no new wish, hence the new wanted_version.
_PARKED = """
UPDATE crm_sync s SET
    attempts = s.attempts + 1, last_error = d.reason, claimed_until = '-infinity',
    wanted_version = GREATEST(s.wanted_version, d.version),
    next_attempt_at = CASE WHEN d.next_at = 'infinity' AND s.wanted_version > d.version THEN $2 ELSE d.next_at END
FROM unnest($4::uuid[], $5::bigint[], $6::text[], $7::timestamptz[]) AS d(lead_id, version, reason, next_at)
WHERE s.destination = $1 AND s.lead_id = ANY($4::uuid[]) AND s.lead_id = d.lead_id AND s.claimed_until = $3
"""

_RELEASE = """
UPDATE crm_sync SET claimed_until = '-infinity', next_attempt_at = GREATEST(next_attempt_at, $2)
WHERE destination = $1 AND claimed_until = $3 AND lead_id = ANY($4::uuid[])
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
class Want:
    """Lead ``lead_id`` is now at ``version``, decided at ``decided_at``."""

    lead_id: str
    tenant: str
    version: int
    decided_at: int


@dataclass(frozen=True, slots=True)
class Row:
    """A claimed row of crm_sync."""

    lead_id: str
    tenant: str
    wanted: int
    attempts: int
    last_error: str
    remote_id: str


@dataclass(frozen=True, slots=True)
class Loser:
    """A lead merged into ``survivor_id`` that has a row; ``row`` is None while another worker has it in hand."""

    survivor_id: str
    row: Row | None


@dataclass(frozen=True, slots=True)
class Lead:
    """A lead as the canonical record has it now."""

    version: int
    survivor_id: str
    survivor_remote_id: str
    attributes: Mapping[str, Any]
    erased: bool = False


@dataclass(frozen=True, slots=True)
class Claim:
    """Rows that are ours until ``until``."""

    until: datetime
    rows: list[Row]


class Store:
    """The rows of one destination."""

    def __init__(self, pool: asyncpg.Pool, destination: str, *, lease_s: float, clock: Callable[[], int]) -> None:
        self._pool = pool
        self._destination = destination
        self._lease = timedelta(seconds=lease_s)
        self._clock = clock

    async def want(self, wants: Sequence[Want]) -> None:
        """Want at least these versions; at most one want a lead. Wishes older than what is wanted change nothing."""
        columns = _columns([(w.lead_id, w.tenant, w.version, _time(w.decided_at)) for w in wants], 4)
        async with connection(self._pool) as postgres:
            await postgres.execute(_WANT, self._destination, self._now(), *columns)

    async def claim(self, limit: int) -> Claim:
        """Claim up to ``limit`` leads with work that is due, longest waiting first; never one that is claimed."""
        now = self._now()
        until = now + self._lease
        async with connection(self._pool) as postgres:
            rows = await postgres.fetch(_CLAIM, self._destination, now, until, limit)
        return Claim(until, [_row(row) for row in rows])

    async def claim_losers(self, claim: Claim, survivors: Sequence[str]) -> list[Loser]:
        """Claim, under the same lease, what was merged into ``survivors`` and is not in ``claim`` already."""
        ours = [row.lead_id for row in claim.rows]
        async with connection(self._pool) as postgres:
            rows = await postgres.fetch(_CLAIM_LOSERS, self._destination, self._now(), claim.until, survivors, ours)
        return [Loser(str(row["survivor_id"]), _row(row) if row["tenant"] is not None else None) for row in rows]

    async def leads(self, lead_ids: Sequence[str]) -> dict[str, Lead]:
        """Return the newest state of ``lead_ids``; an erased lead is not in the answer."""
        async with connection(self._pool) as postgres:
            rows = await postgres.fetch(_LEADS, self._destination, lead_ids)
        return {
            str(row["lead_id"]): Lead(
                row["version"],
                str(row["merged_into"] or ""),
                row["survivor_remote_id"] or "",
                orjson.loads(row["attributes"]),
                row["erased"],
            )
            for row in rows
        }

    async def synced(self, claim: Claim, done: Sequence[tuple[str, int, str]]) -> None:
        """Write back ``(lead_id, version sent, remote_id)`` and give the rows back. Versions never go down."""
        async with self._locked([lead_id for lead_id, _, _ in done]) as postgres:
            await postgres.execute(_SYNCED, self._destination, self._now(), claim.until, *_columns(done, 3))

    async def parked(self, claim: Claim, parked: Sequence[tuple[str, int, Reason, int]]) -> None:
        """Park ``(lead_id, version sent, reason, next_at)``, each alone; ``next_at`` may be NEVER."""
        rows = [(lead_id, version, reason.value, _time(next_at)) for lead_id, version, reason, next_at in parked]
        async with self._locked([row[0] for row in rows]) as postgres:
            await postgres.execute(_PARKED, self._destination, self._now(), claim.until, *_columns(rows, 4))

    async def release(self, claim: Claim, lead_ids: Sequence[str], next_at: int = 0) -> None:
        """Give rows back as they were, not due before ``next_at``."""
        if lead_ids:
            async with self._locked(lead_ids) as postgres:
                await postgres.execute(_RELEASE, self._destination, _time(next_at), claim.until, lead_ids)

    async def retired(self, claim: Claim, gone: Sequence[tuple[str, int]], adopted: Mapping[str, str]) -> None:
        """Drop the rows ``(lead_id, wanted version known)``; ``adopted``: survivor -> its record's id from now on."""
        async with self._locked([*adopted, *(lead_id for lead_id, _ in gone)]) as postgres:
            if adopted:
                await postgres.execute(_ADOPTED, self._destination, list(adopted), list(adopted.values()))
            await postgres.execute(_FORGET, self._destination, claim.until, *_columns(gone, 2))
            await postgres.execute(_START_OVER, self._destination, claim.until, [lead_id for lead_id, _ in gone])

    @asynccontextmanager
    async def _locked(self, lead_ids: Sequence[str]) -> AsyncIterator[asyncpg.Connection]:
        """Run the body in a transaction that has locked the rows in the order in which all of us lock: no deadlocks."""
        async with transaction(self._pool) as postgres:
            await postgres.execute(_LOCK, self._destination, lead_ids)
            yield postgres

    def _now(self) -> datetime:
        return _time(self._clock())


def _time(microseconds: int) -> datetime:
    # asyncpg writes and reads the greatest datetime as Postgres's infinity.
    return datetime.max.replace(tzinfo=UTC) if microseconds == NEVER else _EPOCH + timedelta(microseconds=microseconds)


def _columns(rows: Sequence[tuple[Any, ...]], width: int) -> list[list[Any]]:
    return [[row[i] for row in rows] for i in range(width)]


def _row(row: Any) -> Row:
    return Row(
        str(row["lead_id"]),
        row["tenant"],
        row["wanted_version"],
        row["attempts"],
        row["last_error"],
        row["remote_id"],
    )
