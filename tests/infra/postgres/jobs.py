"""A table of leased work for tests, and the engine that runs on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from infra.clock import now_us
from infra.kafka.outcome_records import OutcomeRecords
from infra.kafka.producer import Output
from infra.outcomes import What
from infra.postgres.leased import LeasedWork, WorkLimits
from infra.postgres.leased_outcomes import Emit, OutcomeQueue
from infra.postgres.leased_pause import Pause
from infra.postgres.leased_rows import ClaimedRow, Done, Lease, Subject
from infra.postgres.leased_settle import Handle
from infra.postgres.leased_table import LeasedTable, WorkColumns
from infra.postgres.pool import connection
from infra.retry import Backoff
from infra.runtime import Status, Stop
from schemas.codec import Codec

CODEC = Codec()
STAGE = "jobs"
DONE = Done(What.ENRICHED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(ClaimedRow):
    """``key`` is its number."""


class JobsTable(LeasedTable[Job]):
    """Jobs of one queue; ``handled`` counts how often a job was finished."""

    def __init__(
        self, pool: asyncpg.Pool, name: str, queue: str = "q", *, lease_s: float = 60, clock: Any = now_us
    ) -> None:
        columns = WorkColumns(name, "id", "bigint", "queue", "state = 'open'", "work.queue", "note = 'parked'")
        super().__init__(pool, columns, queue, lease_s=lease_s, clock=clock)
        self.pool = pool
        self.name = name
        self.clock = clock

    async def create(self) -> None:
        await self.pool.execute(
            f"""
            CREATE TABLE {self.name} (
                id bigint PRIMARY KEY, queue text NOT NULL, state text NOT NULL DEFAULT 'open',
                handled int NOT NULL DEFAULT 0, note text NOT NULL DEFAULT '', attempts int NOT NULL DEFAULT 0,
                last_error text NOT NULL DEFAULT '', next_attempt_at timestamptz NOT NULL DEFAULT '-infinity',
                claimed_until timestamptz NOT NULL DEFAULT '-infinity'
            );
            CREATE INDEX {self.name}_due ON {self.name} (queue, next_attempt_at) WHERE state = 'open';
            """
        )

    async def add(self, count: int, first: int = 1, queue: str = "q") -> None:
        await self.pool.execute(
            f"INSERT INTO {self.name} (id, queue) SELECT i, $3 FROM generate_series($1::int, $2::int) i",  # noqa: S608
            first,
            first + count - 1,
            queue,
        )

    def read(self, record: Any) -> Job:
        subject = Subject(record["queue"], event_id=record["key"])
        return Job(key=record["key"], attempts=record["attempts"], last_error=record["last_error"], subject=subject)

    async def finish(self, lease: Lease[Job], done: Sequence[tuple[Job, Done]]) -> Collection[str]:
        async with connection(self._pool) as postgres:
            found = await postgres.fetch(
                f"UPDATE {self.name} SET state = 'done', handled = handled + (state = 'open')::int "  # noqa: S608
                "WHERE id = ANY($1::text[]::bigint[]) AND claimed_until = $2 RETURNING id",
                [row.key for row, _ in done],
                lease.until,
            )
        return {str(record["id"]) for record in found}

    async def row(self, key: int = 1) -> Any:
        return await self.pool.fetchrow(f"SELECT * FROM {self.name} WHERE id = $1", key)  # noqa: S608

    async def count(self, where: str = "state = 'done'") -> int:
        count: int = await self.pool.fetchval(f"SELECT count(*) FROM {self.name} WHERE {where}")  # noqa: S608
        return count


@dataclass
class Outcomes:
    """Stores the emitted outcomes."""

    records: list[dict[str, Any]] = field(default_factory=list)

    async def emit(self, outputs: Sequence[Output]) -> None:
        self.records += [CODEC.decode(output.value or b"").record for output in outputs]

    @property
    def reported(self) -> list[tuple[str, str, str]]:
        return [(record["event_id"], record["what"], record["reason"]) for record in self.records]


def engine(
    table: JobsTable,
    handle: Handle[Job],
    emit: Emit,
    *,
    pause: Pause | None = None,
    wake: asyncio.Event | None = None,
    ready: Any = None,
    status: Status | None = None,
    chance: Any = lambda: 0.5,
    **limits: Any,
) -> LeasedWork[Job]:
    """Return the engine with the table's clock and a backoff of mean 1, 2, 4, 8, 8 ... seconds."""
    clock = table.clock
    return LeasedWork(
        STAGE,
        table,
        handle,
        limits=WorkLimits(**{"in_flight": 4, "poll_s": 0.05} | limits),
        backoff=Backoff(1, 8, chance),
        pause=pause or Pause(STAGE, table.name, Backoff(1, 8, chance), clock),
        outcomes=OutcomeQueue(emit),
        records=OutcomeRecords(STAGE, CODEC.encoder("outcome"), clock),
        wake=wake or asyncio.Event(),
        ready=ready,
        status=status,
        clock=clock,
    )


@asynccontextmanager
async def running(*works: LeasedWork[Job]) -> AsyncIterator[Stop]:
    """Run engines for the body of the ``with``; then request a stop and wait for their end."""
    stop = Stop()
    tasks = [asyncio.create_task(work.run(stop)) for work in works]
    try:
        yield stop
        stop.request()
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def all_done(lease: Lease[Job]) -> list[tuple[Job, Done]]:
    """Settle every row as done."""
    return [(row, DONE) for row in lease.rows]
