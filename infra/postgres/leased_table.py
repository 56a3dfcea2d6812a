"""A table of leased work: which columns it has, and the statements that claim, renew, park and release its rows.

The table has, beside its own columns:

    attempts         int          failed ones that count since the last success
    last_error       text         infra.outcomes.Reason of the newest failure, '' for none
    next_attempt_at  timestamptz  not due before; 'infinity': parked until released or changed
    claimed_until    timestamptz  leased until then; '-infinity': free

and an index on (scope, next_attempt_at) that holds the unfinished rows only, so that a claim costs what is due.

Guarantees: a row is leased to one worker at a time. ``claimed_until`` is also the lease's token: a worker whose lease
ran out changes nothing about a row that was claimed, parked or released since. Each method is one statement; rows are
locked in the order of their keys, except by the claim, which waits for no lock: so workers cannot deadlock.
Crash: a claimed row is due again when its lease ends.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Generic

import asyncpg

from infra.clock import Clock, now_us, seconds_us
from infra.outcomes import Reason
from infra.postgres.leased_rows import Done, Lease, Parked, Released, Row
from infra.postgres.pool import connection


@dataclass(frozen=True, slots=True)
class WorkColumns:
    """How a table of leased work is laid out. All of it is SQL of ours, never a value.

    ``scope``: the column that says whose work a row is. ``unfinished``: the index's predicate.
    ``returning``: what a claim reads beside the key, attempts and last_error, by the statement that claims; ``work`` is
    the row. ``on_park``: further assignments when a row is parked.
    """

    table: str
    key: str
    key_type: str
    scope: str
    unfinished: str
    returning: str
    on_park: str = ""


class LeasedTable(ABC, Generic[Row]):
    """The work of one ``scope`` (a destination, a channel, a queue). All methods raise DependencyUnavailable.

    ``finish_is_exact``: a repeated :meth:`finish` returns what the first returned, so rows that it does not return were
    lost to another worker. Else an answer that was lost counts as success.
    """

    finish_is_exact = False

    def __init__(
        self, pool: asyncpg.Pool, columns: WorkColumns, scope: str, *, lease_s: float, clock: Clock = now_us
    ) -> None:
        self._pool = pool
        self._scope = scope
        self._clock = clock
        self._channel = f"leased_{columns.table}"
        self.lease_s = lease_s
        names = asdict(columns) | {"on_park": f", {columns.on_park}" if columns.on_park else ""}
        self._claim, self._renew, self._park, self._release, self._unpark = (
            statement.format(ours=_OURS.format(**names), **names)
            for statement in (_CLAIM, _RENEW, _PARK, _RELEASE, _UNPARK)
        )

    @abstractmethod
    def read(self, record: Any) -> Row:
        """Return the row of a claim's record: the key, attempts, last_error and what ``returning`` names."""

    @abstractmethod
    async def finish(self, lease: Lease[Row], done: Sequence[tuple[Row, Done]]) -> Collection[str]:
        """Write what became of rows, as far as they are still ours; return the keys whose outcomes are to be emitted.

        It may be repeated with the same arguments when an answer was lost.
        """

    def overdue(self, row: Row) -> Parked | Released:  # noqa: ARG002 - for tables that need to know which
        """Return what becomes of a row whose work was cancelled because it did not keep to its deadline."""
        return Parked(Reason.TIMEOUT)

    async def claim(self, limit: int) -> Lease[Row]:
        """Claim up to ``limit`` rows that are due and free, longest waiting first."""
        now = self._clock()
        until = now + seconds_us(self.lease_s)
        async with connection(self._pool) as postgres:
            records = await postgres.fetch(self._claim, self._scope, now, until, limit)
        return Lease(until, [self.read(record) for record in records])

    async def renew(self, lease: Lease[Row]) -> bool:
        """Have the lease run from now on, between two steps of long work; return whether all rows are still ours."""
        until = self._clock() + seconds_us(self.lease_s)
        keys = [row.key for row in lease.rows]
        async with connection(self._pool) as postgres:
            renewed = await postgres.fetch(self._renew, self._scope, lease.until, keys, until)
        lease.extend(until, self.lease_s, self._clock())
        return len(renewed) == len(keys)

    async def park(self, lease: Lease[Row], parked: Sequence[tuple[Row, Parked, int]]) -> Collection[str]:
        """Park rows until their ``due_at``, the third of each; return the keys of those that were still ours."""
        columns: tuple[list[Any], ...] = (
            [row.key for row, _, _ in parked],
            [each.reason.value for _, each, _ in parked],
            [due_at for _, _, due_at in parked],
            [each.attempts for _, each, _ in parked],
        )
        async with connection(self._pool) as postgres:
            found = await postgres.fetch(self._park, self._scope, lease.until, *columns)
        return {record["key"] for record in found}

    async def release(self, lease: Lease[Row], rows: Sequence[Row], due_at: int = 0) -> None:
        """Give rows back as they were, due no earlier than before and not before ``due_at``."""
        async with connection(self._pool) as postgres:
            await postgres.execute(self._release, self._scope, lease.until, [row.key for row in rows], due_at)

    async def unpark(self, keys: Sequence[str]) -> int:
        """Make parked rows due now, without their past attempts; return how many."""
        async with connection(self._pool) as postgres:
            return len(await postgres.fetch(self._unpark, self._scope, self._clock(), keys))

    async def announce(self, postgres: asyncpg.Connection) -> None:
        """Wake the workers of this scope in all processes when ``postgres``, in which rows were inserted, commits."""
        await postgres.execute("SELECT pg_notify($1, $2)", self._channel, self._scope)

    async def listen(self, wake: asyncio.Event) -> None:
        """Set ``wake`` at each announcement; return when the connection is lost."""
        lost = asyncio.Event()

        def ended(_: object) -> None:
            lost.set()

        def announced(*message: object) -> None:
            if message[-1] == self._scope:
                wake.set()

        async with connection(self._pool) as postgres:
            postgres.add_termination_listener(ended)
            await postgres.add_listener(self._channel, announced)
            wake.set()  # what was announced before
            try:
                await lost.wait()
            finally:
                with suppress(asyncpg.InterfaceError):  # a lost connection has left the pool
                    postgres.terminate()  # no round trip: the task may be cancelled while Postgres is unavailable


# ``{key} = ANY(...)`` stands beside each join on the key so that rows are found by index: joined to an unnest alone,
# the planner may read the whole table (at 50,000 leads: 34 ms against 3 ms a batch).

_CLAIM = """
WITH due AS MATERIALIZED (
    SELECT {key} FROM {table}
    WHERE {scope} = $1 AND {unfinished} AND next_attempt_at <= $2 AND claimed_until <= $2
    ORDER BY next_attempt_at LIMIT $4 FOR UPDATE SKIP LOCKED
)
UPDATE {table} work SET claimed_until = $3 WHERE {scope} = $1 AND {key} = ANY(ARRAY(SELECT {key} FROM due))
RETURNING work.{key}::text AS key, work.attempts, work.last_error, {returning}
"""

_OURS = """
ours AS MATERIALIZED (
    SELECT {key} FROM {table}
    WHERE {scope} = $1 AND {key} = ANY($3::text[]::{key_type}[]) AND claimed_until = $2 ORDER BY {key} FOR UPDATE
)
"""

_RENEW = """
WITH {ours} UPDATE {table} SET claimed_until = $4
WHERE {scope} = $1 AND {key} = ANY(ARRAY(SELECT {key} FROM ours)) RETURNING {key}
"""

_PARK = """
WITH {ours} UPDATE {table} work SET
    attempts = work.attempts + d.attempts, last_error = d.reason, next_attempt_at = d.due_at,
    claimed_until = '-infinity'{on_park}
FROM unnest($3::text[]::{key_type}[], $4::text[], $5::timestamptz[], $6::int[]) AS d (key, reason, due_at, attempts)
WHERE work.{scope} = $1 AND work.{key} = ANY(ARRAY(SELECT {key} FROM ours)) AND work.{key} = d.key
RETURNING work.{key}::text AS key
"""

_RELEASE = """
WITH {ours} UPDATE {table} SET claimed_until = '-infinity', next_attempt_at = GREATEST(next_attempt_at, $4)
WHERE {scope} = $1 AND {key} = ANY(ARRAY(SELECT {key} FROM ours))
"""

_UNPARK = """
WITH parked AS MATERIALIZED (
    SELECT {key} FROM {table}
    WHERE {scope} = $1 AND {key} = ANY($3::text[]::{key_type}[]) AND {unfinished} AND next_attempt_at > $2
    ORDER BY {key} FOR UPDATE
)
UPDATE {table} SET next_attempt_at = $2, attempts = 0
WHERE {scope} = $1 AND {key} = ANY(ARRAY(SELECT {key} FROM parked)) RETURNING {key}
"""
