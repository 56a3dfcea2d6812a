"""In whatever order the work ends, only the finished prefix is acked; one key's records run one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import DependencyAway
from infra.kafka.producer import Output
from streams.faust.ordered import OrderedPipe, Record
from streams.faust.watchdog import Stall


class Work:
    """Handlers that end when the test says so."""

    def __init__(self, **given: Any) -> None:
        self.ends: dict[int, asyncio.Future[None]] = {}
        self.running: list[int] = []
        self.delivered: list[int] = []
        self.acked: list[int] = []
        self.fatal: list[str] = []
        self.pipe = OrderedPipe("test", self.handle, self.deliver, fatal=self.fatal.append, sleep=no_sleep, **given)

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
    """Let everything that can go on go on."""
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


async def test_one_slow_record_holds_nobody_but_its_key_and_its_partition_s_acks() -> None:
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


async def test_submit_waits_while_as_many_as_allowed_are_in_flight() -> None:
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


async def test_what_a_slow_record_holds_back_is_bounded() -> None:
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


async def test_a_lost_dependency_is_waited_for_in_place() -> None:
    tries: list[int] = []
    acked: list[int] = []

    async def handle(record: Record) -> Sequence[Output]:
        tries.append(record.offset())
        if len(tries) < 4:
            raise DependencyAway("Postgres", "gone")
        return []

    async def deliver(_: Sequence[Output]) -> None:
        return

    pipe = OrderedPipe("test", handle, deliver, sleep=no_sleep)
    await pipe.submit(Record(("t", 0), 5, b"k", b""), lambda: acked.append(5))
    await settle()
    assert tries == [5] * 4
    assert acked == [5]
    assert pipe.status.waiting == ""


async def test_a_handler_that_fails_is_fatal_and_never_acked() -> None:
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


async def test_pausing_finishes_what_is_in_flight_and_lets_the_rest_go() -> None:
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


async def test_what_outlives_a_pause_is_never_acked() -> None:
    work = Work()
    await work.submit(0)
    assert not await work.pipe.pause(0.01)
    await work.pipe.resume()
    await work.submit(0)  # the same record again, from the new assignment
    await settle()
    work.end(0)
    await settle()
    assert work.acked == [0]


@pytest.mark.parametrize("excused", [True, False])
def test_a_stall_is_work_without_a_commit(excused: bool) -> None:
    now = [0.0]
    stall = Stall(60, lambda: now[0])
    assert stall.saw({"t/0": (5, 9)}, excused=excused) == ""
    now[0] = 59
    assert stall.saw({"t/0": (5, 10)}, excused=excused) == ""
    now[0] = 61
    assert bool(stall.saw({"t/0": (5, 10)}, excused=excused)) is not excused


def test_a_partition_that_commits_or_has_no_work_does_not_stall() -> None:
    now = [0.0]
    stall = Stall(60, lambda: now[0])
    for step in range(10):
        now[0] = step * 50.0
        assert stall.saw({"moves": (step, 100), "idle": (7, 7)}) == ""
