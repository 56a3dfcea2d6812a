"""The batch loop against a real broker: what is committed, in which order, and what happens when something is away."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from confluent_kafka import OFFSET_INVALID, Consumer, Message, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from prometheus_client import REGISTRY

from infra.errors import DependencyAway, TooManyDead
from infra.kafka.batches import _Loop, run_batches
from infra.kafka.dead_letters import LARGEST, DeadShare, dead_letter
from infra.kafka.dead_letters import TOPIC as DEAD
from infra.kafka.processor import Effects
from infra.kafka.producer import Deliverer, Output
from infra.outcomes import Dead, Reason
from infra.runtime import Stop
from infra.settings import Settings
from tests.conftest import Stack, eventually

pytestmark = pytest.mark.integration

Coordinates = tuple[int, int]  # partition, offset
_QUICK_GROUP = {"session.timeout.ms": 6000, "heartbeat.interval.ms": 300}


class GatedDeliverer(Deliverer):
    """A deliverer that can be held back, as a slow broker would."""

    def __init__(self, bootstrap: str) -> None:
        super().__init__(bootstrap)
        self.entered = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def deliver(self, outputs: Sequence[Output]) -> None:
        self.entered.set()
        await self.gate.wait()
        await super().deliver(outputs)


@dataclass
class Recorder:
    """A processor that remembers what it was given and tells each record on ``out``, in the record's own partition."""

    out: str
    during: Callable[[list[Message]], Any] = lambda _: None
    dead: Callable[[Message], bool] = lambda _: False
    applied: list[Coordinates] = field(default_factory=list)
    batches: list[list[Message]] = field(default_factory=list)
    preparing: Callable[[Sequence[Message]], Any] = lambda _: None
    prepared: int = 0
    tries: list[int] = field(default_factory=list)
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def prepare(self, messages: Sequence[Message]) -> list[Message]:
        self.prepared += 1
        self.preparing(messages)
        return list(messages)

    async def apply(self, prepared: list[Message]) -> Effects:
        self.tries.append(id(prepared))
        self.entered.set()
        await self.gate.wait()
        self.during(prepared)
        self.batches.append(prepared)
        self.applied += [(m.partition(), m.offset()) for m in prepared]
        outputs = [Output(self.out, m.key(), m.value(), None, m.partition()) for m in prepared]
        return Effects(outputs, sum(self.dead(m) for m in prepared))


@dataclass
class Place:
    """A topic, one for outputs and a group, of a test's own."""

    settings: Settings
    name: str
    partitions: int
    deliverer: GatedDeliverer
    stop: Stop = field(default_factory=Stop)

    @property
    def out(self) -> str:
        return f"{self.name}-out"

    async def send(self, *values: bytes, partition: int | None = None) -> None:
        spread = [i % self.partitions if partition is None else partition for i in range(len(values))]
        await Deliverer.deliver(
            self.deliverer, [Output(self.name, None, v, None, p) for v, p in zip(values, spread, strict=True)]
        )

    def run(self, processor: Recorder, *, stop: Stop | None = None, size: int = 50, **own: Any) -> asyncio.Task[None]:
        words: dict[str, Any] = {"settings": self.settings, "linger_ms": 20, "config": _QUICK_GROUP} | own
        return asyncio.ensure_future(
            run_batches(
                words.pop("settings"),
                group=self.name,
                topics=[self.name],
                processor=processor,
                stop=stop or self.stop,
                size=size,
                deliverer=self.deliverer,
                **words,
            )
        )

    def _ask(self, how: Callable[[Consumer], Any]) -> Any:
        consumer = Consumer({"bootstrap.servers": self.settings.kafka_bootstrap, "group.id": self.name})
        try:
            return how(consumer)
        finally:
            consumer.close()

    async def committed(self) -> dict[int, int]:
        """Return the committed offset of each partition that has one."""
        parts = [TopicPartition(self.name, p) for p in range(self.partitions)]
        found = await asyncio.to_thread(self._ask, lambda c: c.committed(parts, 10))
        return {p.partition: p.offset for p in found if p.offset != OFFSET_INVALID}

    async def told(self) -> dict[int, list[bytes]]:
        """Return the values on the output topic, by partition, in their order."""

        def read(consumer: Consumer) -> dict[int, list[bytes]]:
            found: dict[int, list[bytes]] = defaultdict(list)
            ends = {}
            for p in range(self.partitions):
                ends[p] = consumer.get_watermark_offsets(TopicPartition(self.out, p), 10)[1]
            consumer.assign([TopicPartition(self.out, p, 0) for p in range(self.partitions)])
            while sum(map(len, found.values())) < sum(ends.values()):
                for message in consumer.consume(1000, 1):
                    assert message.error() is None
                    found[message.partition()].append(message.value())
            return dict(found)

        answer: dict[int, list[bytes]] = await asyncio.to_thread(self._ask, read)
        return answer

    async def done(self, count: int) -> bool:
        return sum((await self.committed()).values()) == count

    async def finish(self, task: asyncio.Task[None], count: int) -> None:
        """Wait until ``count`` records are committed, then stop ``task``."""

        async def committed() -> bool:
            if task.done():
                task.result()
            return await self.done(count)

        await eventually(committed)
        self.stop.request()
        await task


@pytest.fixture
async def place(stack: Stack, unique: str) -> AsyncIterator[Callable[..., Place]]:
    admin = AdminClient({"bootstrap.servers": stack.kafka_bootstrap})
    made: list[Place] = []

    def make(partitions: int = 1, **changes: str) -> Place:
        name = f"test-batches-{unique}"
        topics = [NewTopic(name, partitions, 1), NewTopic(f"{name}-out", partitions, 1)]
        for future in admin.create_topics(topics).values():
            future.result()
        settings = Settings.load(stack.environment(**changes))
        made.append(Place(settings, name, partitions, GatedDeliverer(stack.kafka_bootstrap)))
        return made[-1]

    yield make
    for each in made:
        await each.deliverer.close()


def numbers(count: int) -> list[bytes]:
    return [str(n).encode() for n in range(count)]


async def test_offsets_are_committed_after_the_effect_and_after_the_delivery(place: Callable[..., Place]) -> None:
    here = place()
    processor = Recorder(here.out)
    processor.gate.clear()
    here.deliverer.gate.clear()
    await here.send(*numbers(30))
    task = here.run(processor, size=30, linger_ms=3000)
    await processor.entered.wait()
    assert await here.committed() == {}
    processor.gate.set()
    await here.deliverer.entered.wait()
    assert len(processor.applied) == 30
    assert await here.committed() == {}
    here.deliverer.gate.set()
    await here.finish(task, 30)
    assert await here.told() == {0: numbers(30)}


async def test_each_partition_keeps_its_order_through_apply_and_outputs(place: Callable[..., Place]) -> None:
    here = place(3)
    processor = Recorder(here.out)
    values = numbers(900)
    task = here.run(processor, size=17, linger_ms=1)
    for start in range(0, 900, 90):
        await here.send(*values[start : start + 90])
    await here.finish(task, 900)
    for partition in range(3):
        assert [o for p, o in processor.applied if p == partition] == list(range(300))
        assert (await here.told())[partition] == values[partition::3]
    assert all(len(batch) <= 17 for batch in processor.batches)


async def test_the_same_batch_is_tried_until_the_dependency_is_back(place: Callable[..., Place]) -> None:
    here = place(2)
    left = [3, 0, 2]  # how often the first, second, third batch finds it away

    def away(_: list[Message]) -> None:
        if left and left[0]:
            left[0] -= 1
            raise DependencyAway("Postgres", "refused")
        if left:
            left.pop(0)

    processor = Recorder(here.out, away)
    await here.send(*numbers(60))
    task = here.run(processor, size=20)
    await eventually(lambda: asyncio.sleep(0, here.stop.status.waiting == "waiting for Postgres"))
    await here.finish(task, 60)
    assert sorted(processor.applied) == [(p, o) for p in range(2) for o in range(30)]
    assert len(processor.tries) == len(processor.batches) + 5
    assert len(set(processor.tries[:4])) == 1
    assert here.stop.status.waiting == ""


async def test_what_is_away_while_preparing_is_waited_for_too(place: Callable[..., Place]) -> None:
    here = place(2)
    left = [3]

    def away(_: Sequence[Message]) -> None:
        if left[0]:
            left[0] -= 1
            raise DependencyAway("the schema registry", "refused")

    processor = Recorder(here.out, preparing=away)
    await here.send(*numbers(60))
    task = here.run(processor, size=20)
    await eventually(lambda: asyncio.sleep(0, here.stop.status.waiting == "waiting for the schema registry"))
    await here.finish(task, 60)
    assert sorted(processor.applied) == [(p, o) for p in range(2) for o in range(30)]
    assert here.stop.status.waiting == ""


async def test_a_blocked_batch_pauses_its_partitions_and_the_group_stays(place: Callable[..., Place]) -> None:
    """Blocked for longer than max.poll.interval.ms: who did not go on polling would be out of the group."""
    here = place(2)
    back = False
    fetched: dict[str, int] = {}

    def away(_: list[Message]) -> None:
        if not back:
            raise DependencyAway("Postgres", "refused")

    def statistics(text: str) -> None:
        topics = json.loads(text)["topics"]
        parts = topics[here.name]["partitions"] if here.name in topics else {}
        fetched.update({p: told["fetchq_cnt"] for p, told in parts.items() if p in "01"})

    processor = Recorder(here.out, away)
    await here.send(*numbers(2000))
    quick = _QUICK_GROUP | {"max.poll.interval.ms": 6000, "statistics.interval.ms": 200, "stats_cb": statistics}
    task = here.run(processor, size=20, config=quick)

    async def waited_long() -> bool:
        return len(processor.tries) >= 9  # the backoff doubles: by then at least 8 s have passed

    await eventually(waited_long, 120)
    assert max(fetched.values()) < 20  # paused: what was fetched ahead was let go, and nothing new came
    assert processor.prepared <= 3
    assert len(set(processor.tries)) == 1
    for kind in ("revoked", "lost"):
        labels = {"stage": here.name, "kind": kind}
        assert not REGISTRY.get_sample_value("leadstream_rebalances_total", labels)
    back = True
    await here.finish(task, 2000)
    for partition in range(2):
        assert [o for p, o in processor.applied if p == partition] == list(range(1000))


async def test_an_unexpected_error_ends_the_loop_with_nothing_of_that_batch_committed(
    place: Callable[..., Place],
) -> None:
    here = place()

    def breaks(messages: list[Message]) -> None:
        if any(m.value() == b"70" for m in messages):
            raise ValueError("a bug")

    processor = Recorder(here.out, breaks)
    await here.send(*numbers(100))
    with pytest.raises(ValueError, match="a bug"):
        await here.run(processor, size=20)
    committed = (await here.committed()).get(0, 0)
    assert committed <= len(processor.applied) <= 70
    again = Recorder(here.out)
    await here.finish(here.run(again, size=20), 100)
    assert again.applied == [(0, o) for o in range(committed, 100)]


async def test_a_batch_that_cannot_be_prepared_ends_the_loop(place: Callable[..., Place]) -> None:
    class Broken(Recorder):
        def prepare(self, messages: Sequence[Message]) -> list[Message]:
            raise KeyError(messages[0].offset())

    here = place()
    await here.send(*numbers(5))
    with pytest.raises(KeyError):
        await here.run(Broken(here.out))
    assert await here.committed() == {}


async def test_workers_that_come_and_go_under_load_lose_nothing(place: Callable[..., Place]) -> None:
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


async def test_a_slow_worker_finishes_before_it_gives_a_partition_up(place: Callable[..., Place]) -> None:
    here = place(2)
    slow, quick = Recorder(here.out), Recorder(here.out)
    slow.gate.clear()
    await here.send(*numbers(40))
    other = Stop()
    first = here.run(slow, size=10)
    await slow.entered.wait()
    second = here.run(quick, stop=other, size=10)
    revoked = {"stage": here.name, "kind": "revoked"}

    async def asked_to_give_up() -> bool:
        return bool(REGISTRY.get_sample_value("leadstream_rebalances_total", revoked))

    await eventually(asked_to_give_up)
    slow.gate.set()
    await eventually(lambda: here.done(40))
    for stop, task in ((here.stop, first), (other, second)):
        stop.request()
        await task
    assert sorted(slow.applied + quick.applied) == [(p, o) for p in range(2) for o in range(20)]


def test_too_many_dead_need_no_full_window() -> None:
    """Or a stage that is restarted again and again would let that many through each time."""
    share = DeadShare(100, 0.5)
    for _ in range(5):
        share.saw(10, 10)
    with pytest.raises(TooManyDead):
        share.saw(1, 1)


async def test_too_many_dead_stop_the_process_before_their_dead_letters_are_written(
    place: Callable[..., Place],
) -> None:
    here = place(LEADSTREAM_DEAD_WINDOW="20", LEADSTREAM_MAX_DEAD_SHARE="0.4")
    processor = Recorder(here.out, dead=lambda m: bool(m.value() == b"bad"))
    good, mixed = [b"good"] * 20, [b"bad"] * 8 + [b"good"] * 12
    await here.send(*good, *mixed, *[b"bad"] * 20)
    with pytest.raises(TooManyDead, match=r"0\.4"):
        await here.run(processor, size=20, linger_ms=5000)
    told = (await here.told()).get(0, [])
    assert told.count(b"bad") <= 8  # exactly the share is still plausible; those of the batch that was too much stay
    assert (await here.committed()).get(0, 0) in (0, 20, 40)


@pytest.mark.parametrize("instance", ["", "one"])
async def test_a_stop_finishes_the_work_in_hand(place: Callable[..., Place], instance: str) -> None:
    here = place(2, LEADSTREAM_INSTANCE=instance)
    processor = Recorder(here.out)
    processor.gate.clear()
    await here.send(*numbers(400))
    task = here.run(processor, size=10)
    await eventually(lambda: asyncio.sleep(0, processor.prepared >= 2))
    here.stop.request()
    processor.gate.set()
    await task
    assert len(processor.batches) == processor.prepared
    assert 20 <= len(processor.applied) < 400
    assert sum((await here.committed()).values()) == len(processor.applied)
    assert sum(map(len, (await here.told()).values())) == len(processor.applied)


@pytest.mark.parametrize(
    ("record", "intact"),
    [
        (os.urandom(4_194_304 - 200), True),
        (b"compressed on the way" * 500_000, True),  # a topic's limit is about compressed bytes
        (b"a" * LARGEST, False),
    ],
    ids=["random", "ten megabytes", "more than a letter holds"],
)
async def test_whatever_a_topic_takes_has_its_dead_letter(
    stack: Stack, unique: str, record: bytes, *, intact: bool
) -> None:
    ours = Deliverer(stack.kafka_bootstrap)
    consumer = Consumer({"bootstrap.servers": stack.kafka_bootstrap, "group.id": unique})
    try:
        (delivery,) = await ours.deliver_each([Output("leads.received", unique.encode(), record)])
        assert delivery.error == ""
        consumer.assign([TopicPartition("leads.received", delivery.partition, delivery.offset)])
        message = await asyncio.to_thread(consumer.poll, 30)
        assert message.value() == record
        (dead,) = await ours.deliver_each([dead_letter(message, "test", Dead(Reason.TOO_LARGE))])
        assert dead.error == ""
        consumer.assign([TopicPartition(DEAD, dead.partition, dead.offset)])
        letter = await asyncio.to_thread(consumer.poll, 30)
        assert (letter.key(), letter.value()) == ((unique.encode(), record) if intact else (None, None))
        headers = dict(letter.headers())
        assert int(headers["leadstream.offset"]) == delivery.offset
        assert (b"too many" in headers["leadstream.detail"]) is not intact
    finally:
        consumer.close()
        await ours.close()


class Rebalancing:
    """A consumer in whose second read its only partition is taken away and, maybe, given back."""

    def __init__(self, *reads: list[Message], back: bool) -> None:
        self.reads = [*reads, []]
        self.back = back
        self.loop: Any = None

    def consume(self, *_: Any) -> list[Message]:
        if len(self.reads) == 2:
            self.loop._on_revoke(self, [TopicPartition("t", 0)])
            if self.back:
                self.loop._on_assign(self, [TopicPartition("t", 0)])
        return self.reads.pop(0)

    def pause(self, _: Any) -> None:
        pass

    def assignment(self) -> list[TopicPartition]:
        return []


@pytest.mark.parametrize("back", [True, False])
@pytest.mark.parametrize("paused", [True, False])
async def test_what_was_read_before_a_rebalance_is_not_taken_for_what_came_after(
    stack: Stack, unique: str, *, back: bool, paused: bool
) -> None:
    """Or its offset would be committed, though an earlier one was dropped with the partition."""
    old, new = (Message("t", 0, offset, None, b"x", None, None, None) for offset in (7, 3))
    consumer = Rebalancing([old], [new] if back else [], back=back)
    deliverer = Deliverer(stack.kafka_bootstrap)
    loop: Any = _Loop(stack.settings, unique, Recorder(""), Stop(), 10, 0.01, deliverer, {})
    consumer.loop, loop._consumer = loop, consumer
    loop._on_assign(consumer, [TopicPartition("t", 0)])
    try:
        if paused:
            loop._poll_paused()
            loop._poll_paused()
        fetched = await loop._poll()
    finally:
        await deliverer.close()
    assert [m.offset() for m in fetched.messages] == ([3] if back else [])
    assert fetched.epochs == ({("t", 0): 2} if back else {})
