"""The ordered pipe acks records in order, and processes the records of one key one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import DependencyUnavailable
from infra.kafka.producer import Output
from streams.faust.ordered import OrderedPipe, Record
from streams.faust.watchdog import Commits, StallDetector


class Work:
    """A pipe whose handlers return when the test calls :meth:`end`."""

    def __init__(self, **options: Any) -> None:
        self.ends: dict[int, asyncio.Future[None]] = {}
        self.running: list[int] = []
        self.delivered: list[int] = []
        self.acked: list[int] = []
        self.fatal: list[str] = []
        self.pipe = OrderedPipe("test", self.handle, self.deliver, fatal=self.fatal.append, sleep=no_sleep, **options)

    async def handle(self, record: Record) -> Sequence[Output]:
        self.running.append(record.offset())
        await self.ends.setdefault(record.offset(), asyncio.get_running_loop().create_future())
        return [Output("out", None, str(record.offset()).encode())]

    async def deliver(self, outputs: Sequence[Output]) -> None:
        self.delivered += [int(output.value or b"-1") for output in outputs]

    async def submit(self, offset: int, key: bytes | None = None, partition: int = 0) -> None:
        await self.pipe.submit(Record(("t", partition), offset, key, b""), lambda: self.acked.append(offset))

    def end(self, offset: int) -> None:
        self.ends.setdefault(offset, asyncio.get_running_loop().create_future()).set_result(None)


async def no_sleep(_: float) -> None:
    await asyncio.sleep(0)


async def settle() -> None:
    """Run the event loop until no task can make progress."""
    for _ in range(200):
        await asyncio.sleep(0)


@given(
    order=st.permutations(range(8)), keys=st.lists(st.sampled_from([b"a", b"b", b"c", None]), min_size=8, max_size=8)
)
def test_any_order_of_completion_acks_only_the_finished_prefix(order: list[int], keys: list[bytes | None]) -> None:
    async def run() -> None:
        work = Work()
        for offset in range(8):
            await work.submit(offset, keys[offset])
        for offset in order:
            work.end(offset)
            await settle()
            finished = set(work.delivered)
            prefix = next((n for n in range(8) if n not in finished), 8)
            assert work.acked == list(range(prefix))
        assert work.acked == list(range(8))
        assert work.fatal == []

    asyncio.run(run())


@given(order=st.permutations(range(10)), keys=st.lists(st.sampled_from([b"a", b"b", b"c"]), min_size=10, max_size=10))
def test_records_of_one_key_run_in_their_order_one_at_a_time(order: list[int], keys: list[bytes]) -> None:
    async def run() -> None:
        work = Work()
        for offset in range(10):
            await work.submit(offset, keys[offset])
        for offset in order:
            work.end(offset)
            await settle()
        for key in set(keys):
            own = [offset for offset in range(10) if keys[offset] == key]
            assert [offset for offset in work.running if keys[offset] == key] == own
            assert [offset for offset in work.delivered if keys[offset] == key] == own

    asyncio.run(run())


async def test_a_slow_record_delays_only_its_key_and_the_acks_of_its_partition() -> None:
    work = Work()
    await work.submit(0, b"slow")
    await work.submit(1, b"slow")
    await work.submit(2, b"fast")
    await work.submit(7, b"other", partition=1)
    for offset in (1, 2, 7):
        work.end(offset)
    await settle()
    assert work.running == [0, 2, 7]
    assert work.acked == [7]
    work.end(0)
    await settle()
    assert work.acked == [7, 0, 1, 2]


async def test_submit_waits_while_the_maximum_is_in_flight() -> None:
    work = Work(max_inflight=2)
    await work.submit(0)
    await work.submit(1)
    third = asyncio.ensure_future(work.submit(2))
    await settle()
    assert not third.done()
    work.end(1)
    await asyncio.wait_for(third, 5)
    assert work.pipe.inflight == 2
    for offset in (0, 2):
        work.end(offset)
    await settle()


async def test_the_records_that_wait_for_the_ack_of_a_slow_one_are_bounded() -> None:
    work = Work(max_inflight=2)
    for offset in range(1, 40):
        work.end(offset)
    tasks = [asyncio.ensure_future(work.submit(offset)) for offset in range(40)]
    await settle()
    assert sum(task.done() for task in tasks) == 32
    work.end(0)
    await asyncio.wait_for(asyncio.gather(*tasks), 5)
    await settle()
    assert work.acked == list(range(40))


async def test_a_record_is_retried_while_a_dependency_is_unavailable() -> None:
    attempts: list[int] = []
    acked: list[int] = []

    async def handle(record: Record) -> Sequence[Output]:
        attempts.append(record.offset())
        if len(attempts) < 4:
            raise DependencyUnavailable("Postgres", "connection refused")
        return []

    async def deliver(_: Sequence[Output]) -> None:
        return

    pipe = OrderedPipe("test", handle, deliver, sleep=no_sleep)
    await pipe.submit(Record(("t", 0), 5, b"k", b""), lambda: acked.append(5))
    await settle()
    assert attempts == [5] * 4
    assert acked == [5]
    assert pipe.status.waiting == ""


async def test_a_failed_handler_is_fatal_and_its_record_is_not_acked() -> None:
    fatal: list[str] = []
    acked: list[int] = []

    async def handle(record: Record) -> Sequence[Output]:
        if record.offset() == 1:
            raise KeyError("secret@example.com")
        return []

    async def deliver(_: Sequence[Output]) -> None:
        return

    pipe = OrderedPipe("test", handle, deliver, fatal=fatal.append)
    for offset in range(3):
        await pipe.submit(Record(("t", 0), offset, None, b""), lambda n=offset: acked.append(n))  # type: ignore[misc]
    await settle()
    assert acked == [0]
    assert fatal == ["handler failed: KeyError"]


async def test_a_pause_finishes_the_records_in_flight_and_drops_waiting_ones() -> None:
    work = Work(max_inflight=2)
    await work.submit(0)
    await work.submit(1)
    waiting = asyncio.ensure_future(work.submit(2))
    pausing = asyncio.ensure_future(work.pipe.pause(5))
    await settle()
    assert waiting.done()
    assert not pausing.done()
    work.end(0)
    work.end(1)
    assert await pausing
    assert work.acked == [0, 1]
    assert work.running == [0, 1]


async def test_a_record_that_is_in_flight_longer_than_a_pause_is_not_acked() -> None:
    work = Work()
    await work.submit(0)
    assert not await work.pipe.pause(0.01)
    await work.pipe.resume()
    await work.submit(0)  # the same record, fetched in the new assignment
    await settle()
    work.end(0)
    await settle()
    assert work.acked == [0]


@pytest.mark.parametrize("excused", [True, False])
def test_records_without_a_commit_are_a_stall_unless_excused(excused: bool) -> None:
    now = [0.0]
    stall = StallDetector(60, lambda: now[0])
    assert stall.check({"t/0": (5, 9)}, excused=excused) == ""
    now[0] = 59
    assert stall.check({"t/0": (5, 10)}, excused=excused) == ""
    now[0] = 61
    assert bool(stall.check({"t/0": (5, 10)}, excused=excused)) is not excused


def test_a_partition_with_commits_or_without_records_is_no_stall() -> None:
    now = [0.0]
    stall = StallDetector(60, lambda: now[0])
    for step in range(10):
        now[0] = step * 50.0
        assert stall.check({"moves": (step, 100), "idle": (7, 7)}) == ""


def test_a_partition_may_wait_while_another_one_makes_progress_but_not_with_a_record_in_process() -> None:
    now = [0.0]
    busy, waiting = ("t", 0), ("t", 1)

    def seconds_to_stall(limit: int, in_process: set[tuple[str, int]], *, moving: bool) -> int:
        commits = Commits(lambda: now[0])
        for second in range(limit):
            now[0] += 1
            progress = {busy: (second if moving else 0, 10_000), waiting: (5, 9)}
            if commits.check(progress, in_process):
                return second
        return limit

    assert seconds_to_stall(1000, {busy}, moving=True) == 1000
    assert seconds_to_stall(1000, {busy, waiting}, moving=True) == 61
    assert seconds_to_stall(1000, set(), moving=False) == 61
    assert seconds_to_stall(10_000, {busy}, moving=True) == 1801
