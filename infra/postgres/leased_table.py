"""A table of leased work: its columns, and the statements that claim, renew, park and release its rows.

Besides its own columns the table has:

    attempts         int          failed attempts since the last success
    last_error       text         infra.outcomes.Reason of the newest failure, '' for none
    next_attempt_at  timestamptz  not due before; 'infinity': parked until released or changed
    claimed_until    timestamptz  leased until then; '-infinity': not leased

and an index on (scope, next_attempt_at) of only the unfinished rows, so that a claim reads only due rows.

Guarantees: a row is leased to one worker at a time. ``claimed_until`` is also the token of the lease: a worker whose
lease has ended cannot change a row that was claimed, parked or released since. Each method is one statement. It locks
rows in the order of their keys; a claim skips locked rows. So workers cannot deadlock.

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
    """The names and SQL fragments of a table of leased work. They are constants of the code, never user input.

    ``scope``: the column with the destination, channel or queue of a row. ``unfinished``: the predicate of the index.
    ``returning``: the columns that a claim reads besides key, attempts and last_error, as SQL in which ``work`` is the
    row. ``on_park``: further assignments when a row is parked.
    """

    table: str
    key: str
    key_type: str
    scope: str
    unfinished: str
    returning: str
    on_park: str = ""


class LeasedTable(ABC, Generic[Row]):
    """The rows of one ``scope`` (a destination, a channel, a queue).

    All methods raise DependencyUnavailable while Postgres is unavailable. ``finish_is_exact``: a repeated
    :meth:`finish` returns the same keys as the first, so the other rows were lost to another worker. Otherwise a write
    whose response was lost counts as successful.
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
        """Return the row of a claimed record: key, attempts, last_error and the columns of ``returning``."""

    @abstractmethod
    async def finish(self, lease: Lease[Row], done: Sequence[tuple[Row, Done]]) -> Collection[str]:
        """Write the results of the rows whose lease is still held; return the keys whose outcomes are to be emitted.

        It must be repeatable with the same arguments: a response may be lost.
        """

    def overdue(self, row: Row) -> Parked | Released:  # noqa: ARG002 - for subclasses
        """Return the result of a row whose work was cancelled because it exceeded its deadline."""
        return Parked(Reason.TIMEOUT)

    async def claim(self, limit: int) -> Lease[Row]:
        """Claim up to ``limit`` rows that are due and not leased, those due longest first."""
        now = self._clock()
        until = now + seconds_us(self.lease_s)
        async with connection(self._pool) as postgres:
            records = await postgres.fetch(self._claim, self._scope, now, until, limit)
        return Lease(until, [self.read(record) for record in records])

    async def renew(self, lease: Lease[Row]) -> bool:
        """Renew the lease between two steps of long work; return whether the lease of all rows was still held."""
        until = self._clock() + seconds_us(self.lease_s)
        keys = [row.key for row in lease.rows]
        async with connection(self._pool) as postgres:
            renewed = await postgres.fetch(self._renew, self._scope, lease.until, keys, until)
        lease.extend(until, self.lease_s, self._clock())
        return len(renewed) == len(keys)

    async def park(self, lease: Lease[Row], parked: Sequence[tuple[Row, Parked, int]]) -> Collection[str]:
        """Park rows until their ``due_at``, the third of each; return the keys of those whose lease was held."""
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
        """Release rows unchanged, due no earlier than before and not before ``due_at``."""
        async with connection(self._pool) as postgres:
            await postgres.execute(self._release, self._scope, lease.until, [row.key for row in rows], due_at)

    async def unpark(self, keys: Sequence[str]) -> int:
        """Make parked rows due now and reset their attempts; return the number of rows."""
        async with connection(self._pool) as postgres:
            return len(await postgres.fetch(self._unpark, self._scope, self._clock(), keys))

    async def announce(self, postgres: asyncpg.Connection) -> None:
        """Wake the workers of this scope in all processes when the transaction of ``postgres`` commits."""
        await postgres.execute("SELECT pg_notify($1, $2)", self._channel, self._scope)

    async def listen(self, wake: asyncio.Event) -> None:
        """Set ``wake`` at each call of :meth:`announce`, in any process; return when the connection is lost."""
        lost = asyncio.Event()

        def ended(_: object) -> None:
            lost.set()

        def announced(*message: object) -> None:
            if message[-1] == self._scope:
                wake.set()

        async with connection(self._pool) as postgres:
            postgres.add_termination_listener(ended)
            await postgres.add_listener(self._channel, announced)
            wake.set()  # for rows announced before
            try:
                await lost.wait()
            finally:
                with suppress(asyncpg.InterfaceError):  # a lost connection has left the pool
                    postgres.terminate()  # without a round trip, which could fail or hang while this is cancelled


# Besides a join on the key, each statement has ``{key} = ANY(...)``, so that rows are found by index: with the join
# alone the planner may read the whole table (at 50,000 leads: 34 ms per batch instead of 3 ms).

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
