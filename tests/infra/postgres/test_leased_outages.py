"""Postgres hangs or breaks connections at the worst moments: the engine ends in time and handles no row twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Collection, Sequence
from functools import partial
from typing import Any

import pytest

from infra.errors import DependencyUnavailable
from infra.kafka.producer import Output
from infra.outcomes import Reason
from infra.postgres import pool as postgres
from infra.postgres.leased_pause import Pause
from infra.postgres.leased_rows import NEVER, Done, Lease, Parked, Released
from infra.retry import Backoff, Retry
from infra.runtime import Status, Stop
from tests.conftest import eventually
from tests.infra.postgres.jobs import DONE, Job, JobsTable, Outcomes, all_done, engine, running
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
        if proxy.broken:
            return
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


async def test_a_listener_that_reports_an_outage_while_it_is_cancelled_ends(
    jobs: JobsTable, outcomes: Outcomes
) -> None:
    listening, stop = asyncio.Event(), Stop()

    class Failing(JobsTable):
        async def listen(self, wake: asyncio.Event) -> None:  # noqa: ARG002
            try:
                listening.set()
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise DependencyUnavailable("Postgres", "test") from None

    table = Failing(jobs.pool, jobs.name, clock=jobs.clock)
    task = asyncio.create_task(engine(table, all_done, outcomes.emit).run(stop))
    await listening.wait()
    stop.request()
    assert await _ended(task)


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


async def test_an_outage_that_only_the_listener_met_is_not_shown(jobs: JobsTable, outcomes: Outcomes) -> None:
    listening, status = asyncio.Event(), Status()

    class Unheard(JobsTable):
        lost = False

        async def listen(self, wake: asyncio.Event) -> None:
            if not self.lost:
                self.lost = True
                raise DependencyUnavailable("Postgres", "test")
            listening.set()
            await super().listen(wake)

    await jobs.add(3)
    table = Unheard(jobs.pool, jobs.name, clock=jobs.clock)
    async with running(engine(table, all_done, outcomes.emit, status=status)):
        await listening.wait()
        await eventually(lambda: len(outcomes.records) == 3)
        assert status.waiting == ""


async def test_a_row_whose_result_is_not_written_yet_is_not_handled_again_after_its_lease(
    jobs: JobsTable, outcomes: Outcomes, clock: Any
) -> None:
    tries, handled, available = 0, Counter[str](), False

    class Refusing(JobsTable):
        async def finish(self, lease: Lease[Job], done: Sequence[tuple[Job, Done]]) -> Collection[str]:
            nonlocal tries
            tries += 1
            if not available:
                raise DependencyUnavailable("Postgres", "test")
            return await super().finish(lease, done)

    async def handle(lease: Lease[Job]) -> list[tuple[Job, Done]]:
        handled.update(row.key for row in lease.rows)
        return await all_done(lease)

    await jobs.add(1)
    async with running(engine(Refusing(jobs.pool, jobs.name, clock=clock), handle, outcomes.emit)):
        await eventually(lambda: tries > 0)
        clock.forward(61)
        await eventually(lambda: tries > 3)
        available = True
        await eventually(partial(_is, jobs, 1, "state = 'done'"))
        await jobs.add(1, 2)
        await eventually(partial(_is, jobs, 2, "state = 'done'"))
    assert handled == {"1": 1, "2": 1}
    assert outcomes.reported == [("1", "enriched", ""), ("2", "enriched", "")]


@pytest.mark.parametrize("exact", [False, True])
async def test_a_row_lost_to_another_worker_is_not_reported_where_finish_can_tell(
    jobs: JobsTable, outcomes: Outcomes, clock: Any, exact: bool
) -> None:
    class Overtaken(JobsTable):
        finish_is_exact = exact
        overtaken = False

        async def finish(self, lease: Lease[Job], done: Sequence[tuple[Job, Done]]) -> Collection[str]:
            if not self.overtaken:
                self.overtaken = True
                clock.forward(61)
                assert len((await jobs.claim(1)).rows) == 1
                raise DependencyUnavailable("Postgres", "test")
            return await super().finish(lease, done)

    await jobs.add(1)
    await engine(Overtaken(jobs.pool, jobs.name, clock=clock), all_done, outcomes.emit).once()
    assert len(outcomes.reported) == (0 if exact else 1)


async def test_while_kafka_is_unavailable_all_results_of_a_batch_are_written(jobs: JobsTable, clock: Any) -> None:
    async def emit(_: Sequence[Output]) -> None:
        raise DependencyUnavailable("Kafka", "test")

    async def handle(lease: Lease[Job]) -> list[tuple[Job, Done | Parked | Released]]:
        others: dict[str, Parked | Released] = {"1": Parked(Reason.REJECTED, until=NEVER), "2": Released(after_s=3600)}
        return [(row, others.get(row.key, DONE)) for row in lease.rows]

    await jobs.add(2500)  # more than may wait to be emitted
    async with running(engine(jobs, handle, emit, in_flight=1, batch_max=3000, stop_s=0.1)):
        await eventually(partial(_is, jobs, 2498, "state = 'done'"))
        await eventually(partial(_is, jobs, 2, "state = 'open' AND claimed_until = '-infinity'"))
    assert (await jobs.row(1))["last_error"] == "rejected"
    assert (await jobs.row(2))["next_attempt_at"] == clock() + 3_600_000_000


async def test_an_outage_that_handle_meets_pauses_the_whole_backlog(jobs: JobsTable, outcomes: Outcomes) -> None:
    calls = 0

    async def handle(_: Lease[Job]) -> list[tuple[Job, Done]]:
        nonlocal calls
        calls += 1
        raise DependencyUnavailable("Redis", "test")

    await jobs.add(200)
    pause = Pause("tests", jobs.name, Backoff(1, 8), jobs.clock)
    async with running(engine(jobs, handle, outcomes.emit, pause=pause, ahead=28)):
        await eventually(lambda: pause.active)
        await eventually(partial(_is, jobs, 200, "claimed_until = '-infinity'"))
    assert calls <= 4
    assert await jobs.count("attempts > 0") == 0


async def test_the_pauses_of_an_outage_that_handle_meets_grow_until_it_is_over(
    jobs: JobsTable, outcomes: Outcomes, clock: Any
) -> None:
    available = False

    async def handle(lease: Lease[Job]) -> list[tuple[Job, Done]]:
        if not available:
            raise DependencyUnavailable("Redis", "test")
        return await all_done(lease)

    await jobs.add(1)
    pause = Pause("tests", jobs.name, Backoff(1, 8, lambda: 0.5), clock)
    work = engine(jobs, handle, outcomes.emit, pause=pause, in_flight=1)
    waits = []
    for _ in range(5):
        assert await work.once() == 1
        waits.append((pause.until - clock()) / 1e6)
        clock.forward(waits[-1])
    assert waits == [1, 2, 4, 8, 8]
    available = True
    assert await work.once() == 1
    available = False
    await jobs.add(1, 2)
    assert await work.once() == 1
    assert pause.until == clock() + 1_000_000


async def _ended(task: asyncio.Task[Any]) -> bool:
    """Return whether ``task`` ends long before Postgres or the tests give up; leave nothing that runs."""
    done, _ = await asyncio.wait({task}, timeout=20)
    if not done:
        for each in asyncio.all_tasks() - {asyncio.current_task()}:
            each.cancel()
    return bool(done)


async def _is(jobs: JobsTable, count: int, where: str) -> bool:
    return await jobs.count(where) == count
