"""The engine of leased work with a real Postgres: claims, parking, pauses, notifications."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import asyncpg
import pytest

from infra.errors import DependencyUnavailable
from infra.outcomes import Reason
from infra.postgres.leased_pause import Pause
from infra.postgres.leased_rows import NEVER, Done, Lease, Parked, Released
from infra.retry import Backoff
from tests.conftest import eventually
from tests.infra.postgres.jobs import DONE, Job, JobsTable, Outcomes, all_done, engine, running

pytestmark = pytest.mark.integration


async def test_two_workers_handle_each_row_once_and_never_at_once(jobs: JobsTable, outcomes: Outcomes) -> None:
    await jobs.add(300)
    now: Counter[str] = Counter()
    begun: Counter[str] = Counter()

    async def handle(lease: Lease[Job]) -> list[tuple[Job, Done]]:
        keys = [row.key for row in lease.rows]
        now.update(keys)
        begun.update(keys)
        assert max(now.values()) == 1
        await asyncio.sleep(0.001)
        now.subtract(keys)
        return [(row, DONE) for row in lease.rows]

    limits: tuple[dict[str, Any], ...] = ({"ahead": 12}, {"batch_max": 7})
    async with running(*(engine(jobs, handle, outcomes.emit, **each) for each in limits)):
        await eventually(partial(_equal, jobs, 300))
    assert set(begun.values()) == {1}
    assert len(begun) == 300
    assert sorted(outcomes.reported) == sorted((key, "enriched", "") for key in begun)


async def test_rows_gather_in_a_batch_while_no_call_may_be_made(jobs: JobsTable, outcomes: Outcomes) -> None:
    gate, sizes, wake = asyncio.Event(), [], asyncio.Event()

    async def ready() -> None:
        await gate.wait()

    async def handle(lease: Lease[Job]) -> list[tuple[Job, Done]]:
        sizes.append(len(lease.rows))
        return await all_done(lease)

    async with running(engine(jobs, handle, outcomes.emit, batch_max=100, ready=ready, wake=wake)):
        await jobs.add(250)
        wake.set()
        gate.set()
        await eventually(partial(_equal, jobs, 250))
    assert sizes == [100, 100, 50]


async def test_a_stop_ends_the_wait_for_ready(jobs: JobsTable, outcomes: Outcomes) -> None:
    waiting = asyncio.Event()

    async def ready() -> None:
        waiting.set()
        await asyncio.Event().wait()

    await jobs.add(1)
    async with running(engine(jobs, all_done, outcomes.emit, ready=ready)):
        await waiting.wait()
    assert await jobs.count("claimed_until > '-infinity'") == 0


async def test_a_failing_row_backs_off_alone_and_is_reported_once_per_reason(
    jobs: JobsTable, outcomes: Outcomes, clock: Any
) -> None:
    await jobs.add(2)
    reasons = [Reason.CONFLICT] * 4 + [Reason.TIMEOUT] * 2

    async def handle(lease: Lease[Job]) -> list[tuple[Job, Done | Parked]]:
        return [(row, DONE if row.key == "2" else Parked(reasons[row.attempts])) for row in lease.rows]

    work = engine(jobs, handle, outcomes.emit, batch_max=10)
    waits = []
    for _ in reasons:
        await work.once()
        waits.append(((await jobs.row())["next_attempt_at"] - clock()) / 1e6)
        clock.forward(waits[-1] - 0.001)
        assert await work.once() == 0
        clock.forward(0.001)
    assert waits == [1, 2, 4, 8, 8, 8]
    assert outcomes.reported == [("2", "enriched", ""), ("1", "parked", "conflict"), ("1", "parked", "timeout")]


async def test_the_jitter_of_the_backoff_is_full(jobs: JobsTable, outcomes: Outcomes, clock: Any) -> None:
    await jobs.add(2)
    chances = iter([0.0, 0.999])

    async def handle(lease: Lease[Job]) -> list[tuple[Job, Parked]]:
        return [(row, Parked(Reason.CONFLICT)) for row in lease.rows]

    await engine(jobs, handle, outcomes.emit, batch_max=2, chance=lambda: next(chances)).once()
    waits = sorted([((await jobs.row(key))["next_attempt_at"] - clock()) / 1e6 for key in (1, 2)])
    assert waits == [0, pytest.approx(1.998)]


async def test_a_row_is_parked_until_a_time_without_an_attempt_or_until_it_is_unparked(
    jobs: JobsTable, outcomes: Outcomes, clock: Any
) -> None:
    await jobs.add(2)
    until = clock() + 30 * 86_400 * 1_000_000
    results: dict[str, Done | Parked] = {
        "1": Parked(Reason.QUOTA, until=until, attempts=0),
        "2": Parked(Reason.REJECTED, "why", until=NEVER),
    }

    async def handle(lease: Lease[Job]) -> list[tuple[Job, Done | Parked]]:
        return [(row, results[row.key]) for row in lease.rows]

    work = engine(jobs, handle, outcomes.emit)
    assert await work.once() == 2
    assert sorted(outcomes.reported) == [("1", "parked", "quota"), ("2", "parked", "rejected")]
    assert [(await jobs.row(key))["attempts"] for key in (1, 2)] == [0, 1]
    results = {"1": DONE, "2": DONE}
    clock.forward(30 * 86_400 - 1)
    assert await work.once() == 0
    clock.forward(1)
    assert await work.once() == 1
    assert await jobs.unpark(["2"]) == 1
    assert await work.once() == 1
    assert await jobs.count() == 2


async def test_a_pause_stops_all_rows_without_an_attempt_and_new_work_does_not_end_it(
    jobs: JobsTable, outcomes: Outcomes, clock: Any
) -> None:
    await jobs.add(20)
    pause, wake, handled = Pause("tests", jobs.name, Backoff(1, 8), clock), asyncio.Event(), Counter[str]()

    async def handle(lease: Lease[Job]) -> list[tuple[Job, Released | Done]]:
        handled.update(row.key for row in lease.rows)
        if clock() < start + 10_000_000:
            pause.begin(Reason.RATE_LIMITED, wait_s=10)
            return [(row, Released()) for row in lease.rows]
        return [(row, DONE) for row in lease.rows]

    start = clock()
    work = engine(jobs, handle, outcomes.emit, pause=pause, wake=wake, in_flight=2, ahead=6)
    async with running(work):
        await eventually(lambda: pause.active)
        await eventually(partial(_equal, jobs, 20, "claimed_until = '-infinity'"))
        before = sum(handled.values())
        assert before <= 2
        await jobs.add(1, 21)
        for _ in range(20):
            wake.set()
            await asyncio.sleep(0.005)
        assert sum(handled.values()) == before
        clock.forward(10)
        await eventually(partial(_equal, jobs, 21))
    assert await jobs.count("attempts > 0 OR last_error <> ''") == 0
    assert {what for _, what, _ in outcomes.reported} == {"enriched"}


async def test_work_inserted_by_this_process_is_claimed_at_once(jobs: JobsTable, outcomes: Outcomes) -> None:
    wake = asyncio.Event()
    async with running(engine(jobs, all_done, outcomes.emit, wake=wake, poll_s=3600)):
        for key in (1, 2):
            await jobs.add(1, key)
            wake.set()
            await eventually(partial(_equal, jobs, key))


async def test_work_announced_by_another_connection_is_claimed_at_its_commit(
    stack: Any, jobs: JobsTable, outcomes: Outcomes
) -> None:
    async with running(engine(jobs, all_done, outcomes.emit, poll_s=3600)):
        other = await asyncpg.connect(stack.dsn)
        insert = f"INSERT INTO {jobs.name} (id, queue) VALUES ($1, 'q')"  # noqa: S608

        async def insert_one(key: int) -> None:
            async with other.transaction():
                await other.execute(insert, key)
                await jobs.announce(other)

        await insert_one(1)
        await eventually(partial(_equal, jobs, 1))
        # The listening connection is lost: a new one is opened, and rows announced in between are claimed.
        await other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = $1", f'LISTEN "leased_{jobs.name}"'
        )
        await insert_one(2)
        await eventually(partial(_equal, jobs, 2))
        await other.close()


async def test_work_that_was_not_announced_is_found_by_polling(jobs: JobsTable, outcomes: Outcomes) -> None:
    async with running(engine(jobs, all_done, outcomes.emit, poll_s=0.05)):
        await jobs.add(1)
        await eventually(partial(_equal, jobs, 1))


async def test_rows_whose_dependency_is_unavailable_are_released(
    jobs: JobsTable, outcomes: Outcomes, clock: Any
) -> None:
    await jobs.add(1)

    async def handle(_: Lease[Job]) -> list[tuple[Job, Done]]:
        raise DependencyUnavailable("Redis", "test")

    assert await engine(jobs, handle, outcomes.emit).once() == 1
    row = await jobs.row()
    assert (row["attempts"], row["last_error"]) == (0, "")
    assert await engine(jobs, all_done, outcomes.emit).once() == 0
    clock.forward(1)
    assert await engine(jobs, all_done, outcomes.emit).once() == 1


@pytest.mark.parametrize("committed", [False, True])
async def test_a_result_is_written_and_reported_after_an_outage_of_postgres(
    jobs: JobsTable, outcomes: Outcomes, committed: bool
) -> None:
    failures = 2

    class Flaky(JobsTable):
        async def finish(self, lease: Lease[Job], done: Sequence[tuple[Job, Done]]) -> Collection[str]:
            nonlocal failures
            if failures:
                failures -= 1
                if committed:
                    await super().finish(lease, done)
                raise DependencyUnavailable("Postgres", "test")
            return await super().finish(lease, done)

    await jobs.add(1)
    assert await engine(Flaky(jobs.pool, jobs.name), all_done, outcomes.emit).once() == 1
    assert (await jobs.row())["handled"] == 1
    assert outcomes.reported == [("1", "enriched", "")]


async def test_work_that_exceeds_its_deadline_is_cancelled_unless_it_renews_its_lease(
    jobs: JobsTable, outcomes: Outcomes
) -> None:
    table = JobsTable(jobs.pool, jobs.name, lease_s=0.4)
    await jobs.add(2)

    async def handle(lease: Lease[Job]) -> list[tuple[Job, Done]]:
        if lease.rows[0].key == "1":
            await asyncio.Event().wait()
        while asyncio.get_running_loop().time() < begun + 1:
            assert await table.renew(lease)
            await asyncio.sleep(0.05)
        return await all_done(lease)

    begun = asyncio.get_running_loop().time()
    await engine(table, handle, outcomes.emit).once()
    assert sorted(outcomes.reported) == [("1", "parked", "timeout"), ("2", "enriched", "")]


async def test_a_row_without_a_result_of_handle_is_an_error(jobs: JobsTable, outcomes: Outcomes) -> None:
    async def handle(lease: Lease[Job]) -> list[tuple[Job, Done]]:
        return [(row, DONE) for row in lease.rows[1:]]

    await jobs.add(2)
    with pytest.raises(RuntimeError, match="settled 1 of 2 rows"):
        await engine(jobs, handle, outcomes.emit, batch_max=2).once()


async def _equal(jobs: JobsTable, count: int, where: str = "state = 'done'") -> bool:
    return await jobs.count(where) == count
