"""Postgres hangs or breaks connections at the worst moments: the engine ends in time and handles no row twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from infra.errors import DependencyUnavailable
from infra.kafka.producer import Output
from infra.outcomes import Reason
from infra.postgres import pool as postgres
from infra.postgres.leased_pause import Pause
from infra.postgres.leased_rows import Lease, Released
from infra.retry import Backoff, Retry
from infra.runtime import Status, Stop
from tests.conftest import eventually
from tests.infra.postgres.jobs import Job, JobsTable, Outcomes, all_done, engine
from tests.infra.postgres.proxy import Proxy, proxied

pytestmark = pytest.mark.integration


@pytest.fixture
async def proxy(stack: Any) -> AsyncIterator[Proxy]:
    async with proxied(stack.dsn) as proxy:
        yield proxy


@pytest.fixture
async def far(proxy: Proxy, jobs: JobsTable) -> AsyncIterator[JobsTable]:
    """Return the table, reached by way of the proxy."""
    pool = await postgres.connect(proxy.dsn, size=16, application="tests")
    yield JobsTable(pool, jobs.name, clock=jobs.clock)
    await postgres.close(pool)


async def test_a_connection_lost_in_the_clean_up_of_a_cancelled_task_does_not_hide_the_cancellation(
    proxy: Proxy, far: JobsTable
) -> None:
    lent, released = asyncio.Event(), False

    async def step() -> None:
        nonlocal released
        async with postgres.connection(far.pool) as connection:
            lent.set()
            try:
                await asyncio.Event().wait()
            finally:
                proxy.break_on = b"SELECT"
                await connection.execute("SELECT 1")
                released = True

    task = asyncio.create_task(Retry("tests", Status()).until_available(step))
    await lent.wait()
    task.cancel()
    assert await _ended(task)
    assert task.cancelled()
    assert (proxy.broken, released) == (1, False)


async def test_a_step_that_reports_an_outage_while_it_is_cancelled_is_not_repeated() -> None:
    begun = asyncio.Event()

    async def step() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise DependencyUnavailable("Kafka", "test") from None

    task = asyncio.create_task(Retry("tests", Status()).until_available(step))
    await begun.wait()
    task.cancel()
    assert await _ended(task)
    assert task.cancelled()


@pytest.mark.parametrize("fails", [False, True])
async def test_the_listener_ends_though_its_connection_breaks_at_the_end(
    proxy: Proxy, far: JobsTable, jobs: JobsTable, outcomes: Outcomes, fails: bool
) -> None:
    await jobs.add(3)
    stop, dead = Stop(), asyncio.Event()

    async def emit(outputs: Sequence[Output]) -> None:
        await outcomes.emit(outputs)
        if fails:
            await dead.wait()
            raise ZeroDivisionError("the broker refuses it for good")

    task = asyncio.create_task(engine(far, all_done, emit, stop_s=0.5).run(stop))
    await eventually(lambda: len(outcomes.records) > 0)
    proxy.hang()
    asyncio.get_running_loop().call_later(0.5, proxy.break_all)
    dead.set()
    if not fails:
        stop.request()
    assert await _ended(task)
    assert isinstance(task.exception(), ZeroDivisionError) is fails


async def test_a_stop_is_bounded_while_postgres_hangs(
    proxy: Proxy, far: JobsTable, jobs: JobsTable, outcomes: Outcomes
) -> None:
    await jobs.add(3)
    stop = Stop()
    task = asyncio.create_task(engine(far, all_done, outcomes.emit, stop_s=0.5).run(stop))
    await eventually(lambda: len(outcomes.records) == 3)
    proxy.hang()
    stop.request()
    assert await _ended(task)


async def test_a_pool_is_closed_while_postgres_hangs(proxy: Proxy, far: JobsTable) -> None:
    await far.pool.execute("SELECT 1")
    proxy.hang()
    assert await _ended(asyncio.create_task(postgres.close(far.pool)))


async def test_a_stop_is_bounded_while_rows_of_a_paused_destination_cannot_be_released(
    jobs: JobsTable, outcomes: Outcomes
) -> None:
    tried = asyncio.Event()

    class Unreleasable(JobsTable):
        async def release(self, lease: Lease[Job], rows: Sequence[Job], due_at: int = 0) -> None:  # noqa: ARG002
            tried.set()
            raise DependencyUnavailable("Postgres", "test")

    table = Unreleasable(jobs.pool, jobs.name, clock=jobs.clock)
    pause = Pause("tests", jobs.name, Backoff(1, 8), jobs.clock)

    async def handle(lease: Lease[Job]) -> list[tuple[Job, Released]]:
        pause.begin(Reason.RATE_LIMITED, wait_s=60)
        return [(row, Released()) for row in lease.rows]

    await jobs.add(40)
    stop = Stop()
    work = engine(table, handle, outcomes.emit, pause=pause, ahead=28, stop_s=0.5)
    task = asyncio.create_task(work.run(stop))
    await tried.wait()
    stop.request()
    assert await _ended(task)


async def _ended(task: asyncio.Task[Any]) -> bool:
    """Return whether ``task`` ends long before Postgres or the tests give up."""
    done, _ = await asyncio.wait({task}, timeout=20)
    return bool(done)
