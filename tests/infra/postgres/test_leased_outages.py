"""The engine while Postgres is lost in the moment of a stop or an error: it ends all the same, in time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import asyncpg
import pytest

from infra.errors import DependencyUnavailable
from infra.kafka.producer import Output
from infra.outcomes import Reason
from infra.postgres.leased_pause import Pause
from infra.postgres.leased_rows import Done, Lease, Released
from infra.postgres.pool import connection
from infra.retry import Backoff, Retry
from infra.runtime import Status, Stop
from tests.conftest import eventually
from tests.infra.postgres.jobs import DONE, STAGE, Job, JobsTable, Outcomes, all_done, engine

pytestmark = pytest.mark.integration


class LostTable(JobsTable):
    """A table whose database is lost while ``lost`` is set."""

    lost = False

    async def release(self, lease: Lease[Job], rows: Sequence[Job], due_at: int = 0) -> None:
        if self.lost:
            raise DependencyUnavailable("Postgres", "test")
        await super().release(lease, rows, due_at)


async def test_a_stop_in_a_pause_with_rows_claimed_ahead_is_bounded_while_postgres_is_lost(
    jobs: JobsTable, outcomes: Outcomes
) -> None:
    table = LostTable(jobs.pool, jobs.name)
    await jobs.add(40)
    pause, stop, begun = Pause(STAGE, jobs.name, Backoff(1, 8)), Stop(), asyncio.Event()

    async def handle(lease: Lease[Job]) -> list[tuple[Job, Released]]:
        table.lost = True
        pause.begin(Reason.RATE_LIMITED, wait_s=60)
        begun.set()
        return [(row, Released()) for row in lease.rows]

    work = engine(table, handle, outcomes.emit, pause=pause, ahead=28, stop_s=0.3)
    running = asyncio.create_task(work.run(stop))
    await begun.wait()
    stop.request()
    await asyncio.wait_for(running, 20)


async def test_the_death_of_the_publisher_ends_it_while_its_connections_break(jobs: JobsTable) -> None:
    await jobs.add(1)

    async def emit(_: Sequence[Output]) -> None:
        async with asyncio.timeout(10):
            await jobs.pool.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%leased%'"
            )
        raise ZeroDivisionError("the broker refuses it permanently")

    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(engine(jobs, all_done, emit).run(Stop()), 20)


async def test_a_connection_that_breaks_during_a_cancellation_does_not_swallow_it(jobs: JobsTable) -> None:
    entered = asyncio.Event()

    async def work() -> None:
        async with connection(jobs.pool):
            entered.set()
            try:
                await asyncio.Event().wait()
            finally:
                raise asyncpg.ConnectionDoesNotExistError("broken while cancelled")

    task = asyncio.create_task(Retry("test", Status()).until_available(work))
    await entered.wait()
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=10)
    assert done
    assert task.cancelled()


async def test_while_kafka_is_unavailable_every_row_of_a_batch_is_written(jobs: JobsTable) -> None:
    await jobs.add(1500)

    async def emit(_: Sequence[Output]) -> None:
        raise DependencyUnavailable("Kafka", "test")

    async def handle(lease: Lease[Job]) -> list[tuple[Job, Done | Released]]:
        # More outcomes than may wait for Kafka, then rows to release.
        return [(row, DONE if int(row.key) <= 1400 else Released(3600)) for row in lease.rows]

    stop = Stop()
    running = asyncio.create_task(engine(jobs, handle, emit, batch_max=1500, stop_s=0.3).run(stop))

    async def written() -> bool:
        released = "state = 'open' AND claimed_until = '-infinity' AND next_attempt_at > '-infinity'"
        return (await jobs.count(), await jobs.count(released)) == (1400, 100)

    await eventually(written)
    stop.request()
    await running
