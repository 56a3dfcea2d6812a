"""How the engine ends: by a stop, an error or a signal; and while Kafka or Postgres is unavailable."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from infra.errors import DependencyUnavailable
from infra.kafka.producer import Output
from infra.postgres.leased_rows import Done, Lease
from infra.postgres.pool import connect
from infra.runtime import Stop
from infra.settings import child_environment
from tests.conftest import eventually
from tests.infra.postgres.jobs import STAGE, Job, JobsTable, Outcomes, all_done, engine, running

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[3]


async def test_a_stop_finishes_the_work_in_progress_and_releases_the_other_rows(
    jobs: JobsTable, outcomes: Outcomes
) -> None:
    await jobs.add(12)
    begun, gate = [], asyncio.Event()

    async def handle(lease: Lease[Job]) -> list[tuple[Job, Done]]:
        begun.append(lease.rows[0].key)
        await gate.wait()
        return await all_done(lease)

    async with running(engine(jobs, handle, outcomes.emit, in_flight=2, ahead=8)) as stop:
        await eventually(lambda: len(begun) == 2)
        await eventually(partial(_is, jobs, 10, "claimed_until > '-infinity'"))
        stop.request()
        await eventually(partial(_is, jobs, 2, "claimed_until > '-infinity'"))
        gate.set()
    assert sorted(outcomes.reported) == sorted((key, "enriched", "") for key in begun)
    assert await jobs.count("state = 'open' AND claimed_until = '-infinity' AND attempts = 0") == 10


async def test_work_that_does_not_end_is_cancelled_and_due_again_after_its_lease(
    jobs: JobsTable, outcomes: Outcomes, clock: Any
) -> None:
    await jobs.add(1)
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def handle(_: Lease[Job]) -> list[tuple[Job, Done]]:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return []

    async with running(engine(jobs, handle, outcomes.emit, stop_s=0.1)):
        await begun.wait()
    assert cancelled.is_set()
    assert (await jobs.claim(1)).rows == []
    clock.forward(61)
    assert len((await jobs.claim(1)).rows) == 1


async def test_it_stops_while_postgres_is_unavailable(outcomes: Outcomes) -> None:
    async with (
        await connect("postgresql://nobody@127.0.0.1:1/none", size=2, application="tests") as pool,
        running(engine(JobsTable(pool, "none"), all_done, outcomes.emit)),
    ):
        await eventually(lambda: waiting() == 1)


async def test_an_unexpected_error_ends_it_and_the_row_is_due_again_after_its_lease(
    jobs: JobsTable, outcomes: Outcomes, clock: Any
) -> None:
    await jobs.add(1)

    async def handle(_: Lease[Job]) -> list[tuple[Job, Done]]:
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError) as caught:
        await engine(jobs, handle, outcomes.emit).run(Stop())
    assert not isinstance(caught.value.__context__, BaseExceptionGroup), "the chain of contexts would be cyclic"
    assert (await jobs.row())["attempts"] == 0
    assert (await jobs.claim(1)).rows == []
    clock.forward(61)
    assert len((await jobs.claim(1)).rows) == 1


async def test_a_permanent_failure_of_publishing_ends_it(jobs: JobsTable) -> None:
    await jobs.add(1)

    async def emit(_: Sequence[Output]) -> None:
        raise ZeroDivisionError("the broker rejects it permanently")

    with pytest.raises(ZeroDivisionError):
        await engine(jobs, all_done, emit).run(Stop())
    assert await jobs.count() == 1, "the result is written"


async def test_while_kafka_is_unavailable_work_waits_and_no_outcome_is_lost(
    jobs: JobsTable, outcomes: Outcomes
) -> None:
    await jobs.add(3000)
    failing = True

    async def emit(outputs: Sequence[Output]) -> None:
        if failing:
            raise DependencyUnavailable("Kafka", "test")
        await outcomes.emit(outputs)

    async with running(engine(jobs, all_done, emit, batch_max=50)):

        async def is_blocked() -> bool:
            before = await jobs.count()
            await asyncio.sleep(0.2)
            return 0 < before == await jobs.count()

        await eventually(is_blocked)
        assert await jobs.count() < 2000
        failing = False
        await eventually(partial(_is, jobs, 3000, "state = 'done'"))
    assert sorted(int(key) for key, _, _ in outcomes.reported) == list(range(1, 3001))


async def test_a_stop_while_kafka_is_unavailable_is_bounded(jobs: JobsTable) -> None:
    await jobs.add(1)

    async def emit(_: Sequence[Output]) -> None:
        raise DependencyUnavailable("Kafka", "test")

    async with running(engine(jobs, all_done, emit, stop_s=0.1)):
        await eventually(partial(_is, jobs, 1, "state = 'done'"))


async def test_rows_that_waited_too_long_for_their_start_are_claimed_again(
    jobs: JobsTable, outcomes: Outcomes, clock: Any
) -> None:
    await jobs.add(2)
    gate, begun = asyncio.Event(), []

    async def handle(lease: Lease[Job]) -> list[tuple[Job, Done]]:
        begun.append((lease.rows[0].key, lease.until))
        await gate.wait()
        return await all_done(lease)

    start = clock()
    work = engine(jobs, handle, outcomes.emit, in_flight=1, ahead=4)
    async with running(work):
        await eventually(partial(_is, jobs, 2, "claimed_until > '-infinity'"))
        clock.forward(16)  # more than a quarter of the lease
        gate.set()
        await eventually(partial(_is, jobs, 2, "state = 'done'"))
    assert [until for _, until in begun] == [start + 60_000_000, start + 76_000_000]


@pytest.mark.chaos
async def test_a_killed_worker_repeats_only_what_it_had_claimed(stack: Any, jobs: JobsTable) -> None:
    await jobs.pool.execute(f"CREATE TABLE {jobs.name}_begun (id bigint)")
    await jobs.add(400)

    async def begun() -> int:
        count: int = await jobs.pool.fetchval(f"SELECT count(*) FROM {jobs.name}_begun")  # noqa: S608
        return count

    async def start() -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.infra.postgres.worker", stack.dsn, jobs.name),
            cwd=ROOT,
            env=child_environment({}, inherit=False),
        )

    allowed = 0
    for goal in (50, 150, 250):
        worker = await start()
        await eventually(partial(_at_least, begun, goal))
        worker.send_signal(signal.SIGKILL)
        await worker.wait()
        allowed += await jobs.count("state = 'open' AND claimed_until > '-infinity'")
    worker = await start()
    await eventually(partial(_is, jobs, 400, "state = 'done'"))
    worker.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(worker.wait(), 60) == 0
    assert 400 <= await begun() <= 400 + allowed
    assert await jobs.count("handled <> 1") == 0


def waiting() -> float | None:
    return REGISTRY.get_sample_value("leadstream_waiting", {"stage": STAGE, "dependency": "Postgres"})


async def _is(jobs: JobsTable, count: int, where: str) -> bool:
    return await jobs.count(where) == count


async def _at_least(count: Any, goal: int) -> bool:
    return bool(await count() >= goal)
