"""Rebalances: no record is lost, and no offset is committed before its batch is delivered."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from confluent_kafka import KafkaError, Message, TopicPartition
from prometheus_client import REGISTRY

from infra.errors import ClientFailed
from infra.kafka.assignment import Assignment
from infra.kafka.batch_limits import BatchLimits
from infra.runtime import Status, Stop
from tests.conftest import eventually
from tests.infra.kafka.conftest import Place, Recorder, numbers

pytestmark = pytest.mark.integration
LIMITS = BatchLimits(10, 1 << 20, 10)


async def test_no_record_is_lost_while_workers_start_and_stop_under_load(place: Callable[..., Place]) -> None:
    here = place(4)
    rng = random.Random(5)
    running: list[tuple[Recorder, Stop, asyncio.Task[None]]] = []
    ended: list[Recorder] = []

    def start() -> None:
        stop, processor = Stop(), Recorder(here.out)
        running.append((processor, stop, here.run(processor, stop=stop, size=7, linger_ms=5)))

    async def end() -> None:
        processor, stop, task = running.pop(rng.randrange(len(running)))
        stop.request()
        await task
        ended.append(processor)

    async def feed() -> None:
        for _ in range(100):
            await here.send(*numbers(40))

    async def moved_on(since: int) -> None:
        async def more() -> bool:
            return sum(len(p.applied) for p, _, _ in running) > since or await here.done(4000)

        await eventually(more)

    start()
    feeding = asyncio.ensure_future(feed())
    await moved_on(0)
    for _ in range(3):
        start()
        before = len(running[-1][0].applied)
        await moved_on(before + sum(len(p.applied) for p, _, _ in running))
        await end()
    await feeding
    await eventually(lambda: here.done(4000), 90)
    while running:
        await end()
    assert {c for p in ended for c in p.applied} == {(p, o) for p in range(4) for o in range(1000)}
    for batch in (b for p in ended for b in p.batches):
        by_partition = sorted(((m.partition(), m.offset()) for m in batch), key=lambda c: c[0])  # a stable sort
        assert all(one < next_one for one, next_one in pairwise(by_partition))


async def test_a_slow_worker_finishes_its_batch_before_a_partition_is_revoked(place: Callable[..., Place]) -> None:
    here = place(2)
    slow, quick = Recorder(here.out), Recorder(here.out)
    slow.gate.clear()
    await here.send(*numbers(40))
    other = Stop()
    first = here.run(slow, size=10)
    await slow.entered.wait()
    second = here.run(quick, stop=other, size=10)
    revoked = {"stage": here.name, "kind": "revoked"}

    async def revocation_began() -> bool:
        return bool(REGISTRY.get_sample_value("leadstream_rebalances_total", revoked))

    await eventually(revocation_began)
    slow.gate.set()
    await eventually(lambda: here.done(40))
    for stop, task in ((here.stop, first), (other, second)):
        stop.request()
        await task
    assert sorted(slow.applied + quick.applied) == [(p, o) for p in range(2) for o in range(20)]


class Rebalancing:
    """A consumer whose only partition is revoked during the second poll and, with ``back``, assigned again."""

    def __init__(self, *reads: list[Message], back: bool) -> None:
        self.reads = [*reads, []]
        self.back = back
        self.callbacks: dict[str, Any] = {}

    def subscribe(self, _: list[str], **callbacks: Any) -> None:
        self.callbacks = callbacks
        callbacks["on_assign"](self, [TopicPartition("t", 0)])

    def consume(self, *_: Any) -> list[Message]:
        if len(self.reads) == 2:
            self.callbacks["on_revoke"](self, [TopicPartition("t", 0)])
            if self.back:
                self.callbacks["on_assign"](self, [TopicPartition("t", 0)])
        return self.reads.pop(0) if self.reads else []

    def pause(self, _: Any) -> None:
        pass

    def assignment(self) -> list[TopicPartition]:
        return []


def test_the_end_of_a_partition_before_a_rebalance_is_not_committed() -> None:
    """Otherwise the offset after records that were dropped would be committed."""
    record = Message("t", 0, 7, None, b"x", None, None, None)
    end = Message("t", 0, 8, None, None, None, KafkaError(KafkaError._PARTITION_EOF), None)
    assignment = Assignment(Rebalancing([record, end], [], back=True), "group", Status())
    assignment.subscribe(["t"])

    fetched = assignment.poll(LIMITS)

    assert (fetched.messages, fetched.next_offsets) == ([], {})


@pytest.mark.parametrize("back", [True, False])
@pytest.mark.parametrize("paused", [True, False])
def test_records_fetched_before_and_after_a_rebalance_are_not_mixed(*, back: bool, paused: bool) -> None:
    """Otherwise an offset would be committed whose earlier records were dropped."""
    old, new = (Message("t", 0, offset, None, b"x", None, None, None) for offset in (7, 3))
    assignment = Assignment(Rebalancing([old], [new] if back else [], back=back), "group", Status())
    assignment.subscribe(["t"])
    if paused:
        assignment.poll_paused(LIMITS)
        assignment.poll_paused(LIMITS)
    fetched = assignment.poll(LIMITS)
    assert [m.offset() for m in fetched.messages] == ([3] if back else [])
    assert fetched.assignments == ({("t", 0): 2} if back else {})


async def test_the_consumer_is_closed_after_a_running_poll_even_if_its_task_was_cancelled() -> None:
    """Closing it during a poll would crash the process."""
    calls: list[str] = []
    entered, gate = threading.Event(), threading.Event()

    class Polling(Rebalancing):
        def consume(self, *_: Any) -> list[Message]:
            entered.set()
            gate.wait(30)
            calls.append("polled")
            return []

        def close(self) -> None:
            calls.append("closed")

    assignment = Assignment(Polling(back=False), "group", Status())
    polling = asyncio.ensure_future(assignment.call(lambda: assignment.poll(LIMITS)))
    await asyncio.to_thread(entered.wait, 30)
    polling.cancel()
    closing = asyncio.ensure_future(assignment.close())
    done, _ = await asyncio.wait({closing}, timeout=0.05)
    assert not done
    gate.set()
    await closing
    assert calls == ["polled", "closed"]


async def test_of_two_workers_with_one_instance_name_one_ends_and_the_other_continues(
    place: Callable[..., Place],
) -> None:
    """A real fatal error: two workers with the same LEADSTREAM_INSTANCE; the broker fences one of them."""
    here = place(1, LEADSTREAM_INSTANCE="same")
    second = Stop()
    first_task = here.run(Recorder(here.out))
    await eventually(lambda: here.stop.status.ready)
    second_task = here.run(Recorder(here.out), stop=second)
    # As a rule the first one: it is the second when the first had lost its session and joined again.
    done, running = await asyncio.wait({first_task, second_task}, return_when=asyncio.FIRST_COMPLETED, timeout=60)
    assert len(done) == len(running) == 1
    with pytest.raises(ClientFailed, match="fenced"):
        await done.pop()
    here.stop.request()
    second.request()
    await running.pop()
