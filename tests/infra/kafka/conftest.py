"""Topics for a single test, and a processor that records its batches."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import NewTopic

from infra.kafka import client
from infra.kafka.batch_limits import BatchLimits
from infra.kafka.batches import run_batches
from infra.kafka.processor import Outputs, Processor
from infra.kafka.producer import Deliverer, Output
from infra.runtime import Stop
from infra.settings import Settings
from tests.conftest import Stack, eventually

Coordinates = tuple[int, int]  # partition, offset
QUICK_GROUP = {"session.timeout.ms": 6000, "heartbeat.interval.ms": 300}


class GatedDeliverer(Deliverer):
    """A deliverer whose deliveries wait for a gate, as with a slow broker."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, "test")
        self.entered = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def deliver(self, outputs: Sequence[Output]) -> None:
        self.entered.set()
        await self.gate.wait()
        await super().deliver(outputs)


@dataclass
class Recorder:
    """A processor that records its batches and produces each record to ``out``, in the same partition."""

    out: str
    during: Callable[[list[Message]], Any] = lambda _: None
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

    async def apply(self, prepared: list[Message]) -> AsyncGenerator[Outputs, None]:
        self.tries.append(id(prepared))
        self.entered.set()
        await self.gate.wait()
        self.during(prepared)
        self.batches.append(prepared)
        self.applied += [(m.partition(), m.offset()) for m in prepared]
        yield [Output(self.out, m.key(), m.value(), None, m.partition()) for m in prepared]


@dataclass
class Place:
    """A topic, an output topic and a consumer group for a single test."""

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

    def run(
        self, processor: Processor[Any], *, stop: Stop | None = None, size: int = 50, **own: Any
    ) -> asyncio.Task[None]:
        options: dict[str, Any] = {"settings": self.settings, "config": QUICK_GROUP} | own
        limits = BatchLimits(size, options.pop("max_bytes", 1 << 20), options.pop("linger_ms", 20))
        return asyncio.ensure_future(
            run_batches(
                options.pop("settings"),
                group=self.name,
                topics=[self.name],
                processor=processor,
                stop=stop or self.stop,
                limits=limits,
                deliverer=self.deliverer,
                **options,
            )
        )

    def _with_reader(self, function: Callable[[Consumer], Any]) -> Any:
        consumer = client.reader(self.settings, self.name)
        try:
            return function(consumer)
        finally:
            consumer.close()

    async def committed(self) -> dict[int, int]:
        """Return the committed offset of each partition that has one."""
        parts = [TopicPartition(self.name, p) for p in range(self.partitions)]
        found = await asyncio.to_thread(self._with_reader, lambda c: c.committed(parts, 10))
        return {p.partition: p.offset for p in found if p.offset != OFFSET_INVALID}

    async def produced(self) -> dict[int, list[bytes]]:
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

        values: dict[int, list[bytes]] = await asyncio.to_thread(self._with_reader, read)
        return values

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
    there = client.admin(stack.settings, "test")
    made: list[Place] = []
    reader = client.reader(stack.settings, f"test-batches-{unique}")

    def coordinated() -> bool:
        try:
            reader.committed([TopicPartition("leads.received", 0)], 10)
        except KafkaException as error:  # a broker that has just started is loading its coordinators
            if error.args[0].retriable() or error.args[0].code() == KafkaError.NOT_COORDINATOR:
                return False
            raise
        return True

    await eventually(coordinated)
    reader.close()

    def make(partitions: int = 1, **changes: str) -> Place:
        name = f"test-batches-{unique}"
        topics = [NewTopic(name, partitions, 1), NewTopic(f"{name}-out", partitions, 1)]
        for future in there.create_topics(topics).values():
            future.result()
        settings = Settings.load(stack.environment(**changes))
        made.append(Place(settings, name, partitions, GatedDeliverer(settings)))
        return made[-1]

    yield make
    for each in made:
        await each.deliverer.close()


def numbers(count: int) -> list[bytes]:
    return [str(n).encode() for n in range(count)]
