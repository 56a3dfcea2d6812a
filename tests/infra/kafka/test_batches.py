"""The batch loop with a real broker: commits, order, unavailable dependencies, errors and stops."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import pytest
from confluent_kafka import Message, Producer, TopicPartition
from prometheus_client import REGISTRY

from infra.errors import DependencyUnavailable
from infra.kafka import client
from infra.kafka.batch_limits import BatchLimits
from infra.kafka.processor import Outputs
from infra.kafka.producer import Output
from infra.runtime import Stop
from tests.conftest import eventually
from tests.infra.kafka.conftest import QUICK_GROUP, Place, Recorder, numbers

pytestmark = pytest.mark.integration


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
    assert await here.produced() == {0: numbers(30)}


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
        assert (await here.produced())[partition] == values[partition::3]
    assert all(len(batch) <= 17 for batch in processor.batches)


async def test_the_same_batch_is_retried_until_the_dependency_is_available(place: Callable[..., Place]) -> None:
    here = place(2)
    left = [3, 0, 2]  # failures of the first, second and third batch

    def unavailable(_: list[Message]) -> None:
        if left and left[0]:
            left[0] -= 1
            raise DependencyUnavailable("Postgres", "refused")
        if left:
            left.pop(0)

    processor = Recorder(here.out, unavailable)
    await here.send(*numbers(60))
    task = here.run(processor, size=20)
    await eventually(lambda: here.stop.status.waiting == "waiting for Postgres")
    await here.finish(task, 60)
    assert sorted(processor.applied) == [(p, o) for p in range(2) for o in range(30)]
    assert len(processor.tries) == len(processor.batches) + 5
    assert len(set(processor.tries[:4])) == 1
    assert here.stop.status.waiting == ""


async def test_an_unavailable_dependency_of_prepare_is_retried_too(place: Callable[..., Place]) -> None:
    here = place(2)
    left = [3]

    def unavailable(_: Sequence[Message]) -> None:
        if left[0]:
            left[0] -= 1
            raise DependencyUnavailable("the schema registry", "refused")

    processor = Recorder(here.out, preparing=unavailable)
    await here.send(*numbers(60))
    task = here.run(processor, size=20)
    await eventually(lambda: here.stop.status.waiting == "waiting for the schema registry")
    await here.finish(task, 60)
    assert sorted(processor.applied) == [(p, o) for p in range(2) for o in range(30)]
    assert here.stop.status.waiting == ""


async def test_a_blocked_batch_pauses_its_partitions_and_the_group_stays(place: Callable[..., Place]) -> None:
    """Blocked for longer than max.poll.interval.ms: a consumer that did not poll would leave the group."""
    here = place(2)
    back = False
    fetched: dict[str, int] = {}

    def unavailable(_: list[Message]) -> None:
        if not back:
            raise DependencyUnavailable("Postgres", "refused")

    def statistics(text: str) -> None:
        topics = json.loads(text)["topics"]
        parts = topics[here.name]["partitions"] if here.name in topics else {}
        fetched.update({p: part["fetchq_cnt"] for p, part in parts.items() if p in "01"})

    processor = Recorder(here.out, unavailable)
    await here.send(*numbers(2000))
    quick = QUICK_GROUP | {"max.poll.interval.ms": 6000, "statistics.interval.ms": 200, "stats_cb": statistics}
    task = here.run(processor, size=20, config=quick)

    async def waited_long() -> bool:
        return len(processor.tries) >= 9  # the backoff doubles: by then at least 8 s have passed

    await eventually(waited_long, 120)
    assert max(fetched.values()) < 20  # paused: prefetched records are discarded, and nothing more is fetched
    assert processor.prepared <= 3
    assert len(set(processor.tries)) == 1
    for kind in ("revoked", "lost"):
        labels = {"stage": here.name, "kind": kind}
        assert not REGISTRY.get_sample_value("leadstream_rebalances_total", labels)
    back = True
    await here.finish(task, 2000)
    for partition in range(2):
        assert [o for p, o in processor.applied if p == partition] == list(range(1000))


async def test_an_unexpected_error_ends_the_loop_without_a_commit_of_that_batch(
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


@pytest.mark.parametrize("instance", ["", "one"])
async def test_a_stop_finishes_the_batches_in_flight(place: Callable[..., Place], instance: str) -> None:
    here = place(2, LEADSTREAM_INSTANCE=instance)
    processor = Recorder(here.out)
    processor.gate.clear()
    await here.send(*numbers(400))
    task = here.run(processor, size=10)
    await eventually(lambda: processor.prepared >= 2)
    here.stop.request()
    processor.gate.set()
    await task
    assert len(processor.batches) == processor.prepared
    assert 20 <= len(processor.applied) < 400
    assert sum((await here.committed()).values()) == len(processor.applied)
    assert sum(map(len, (await here.produced()).values())) == len(processor.applied)


async def test_a_batch_is_cut_by_bytes_and_loses_and_reorders_nothing(place: Callable[..., Place]) -> None:
    here = place(2)
    processor = Recorder(here.out)
    small, large = numbers(200), [b"%06d" % n + b"x" * 50_000 for n in range(100)]
    values = [*small, *large, b"y" * 900_000, *small]
    for start in range(0, len(values), 100):
        await here.send(*values[start : start + 100])
    task = here.run(processor, size=1000, max_bytes=300_000, linger_ms=200)
    await here.finish(task, len(values))

    assert await here.produced() == {p: values[p::2] for p in range(2)}
    assert all(sum(len(m.value()) for m in batch[:-1]) < 300_000 for batch in processor.batches)
    assert max(map(len, processor.batches)) > 20


async def test_a_batch_counts_headers_keys_and_a_fixed_size_of_each_record() -> None:
    limits = BatchLimits(10, 1000, 10, record_bytes=100)
    plain = Message("t", 0, 0, b"key", b"value", None, None, None)
    headers = Message("t", 0, 0, None, None, [("name", b"x" * 400), ("other", None)], None, None)
    assert limits.bytes_of(plain) == 100 + 3 + 5
    assert limits.bytes_of(headers) > 100 + 400


@dataclass
class InParts:
    """A processor that yields its outputs in parts; the first ``failures`` times it fails after two of them."""

    out: str
    failures: int
    yielded: int = 0

    def prepare(self, messages: Sequence[Message]) -> list[Message]:
        return list(messages)

    async def apply(self, prepared: list[Message]) -> AsyncGenerator[Outputs, None]:
        for number, m in enumerate(prepared):
            if number == 2 and self.failures:
                self.failures -= 1
                raise DependencyUnavailable("Postgres", "refused")
            self.yielded += 1
            output = Output(self.out, m.key(), m.value(), None, m.partition())
            yield [output] if number % 2 else partial(list, [output])


@pytest.mark.parametrize("failures", [0, 1])
async def test_the_parts_of_a_batch_are_delivered_in_order_before_its_commit(
    place: Callable[..., Place], failures: int
) -> None:
    here = place()
    processor = InParts(here.out, failures)
    here.deliverer.gate.clear()
    await here.send(*numbers(6))
    task = here.run(processor, size=6, linger_ms=3000)
    await here.deliverer.entered.wait()
    assert await here.committed() == {}
    assert processor.yielded <= 4  # one part is delivered, one waits, one is ready: no more are built
    here.deliverer.gate.set()
    await here.finish(task, 6)
    assert await here.produced() == {0: numbers(6)[: 2 * failures] + numbers(6)}


async def test_a_group_continues_after_retention_has_deleted_its_next_records(place: Callable[..., Place]) -> None:
    here = place()
    await here.send(*numbers(60))
    task = here.run(Recorder(here.out), size=10)
    await here.finish(task, 60)
    await here.send(*numbers(100)[60:])
    admin = client.admin(here.settings, "test")
    for deleted in admin.delete_records([TopicPartition(here.name, 0, 80)]).values():
        await asyncio.to_thread(deleted.result)

    processor = Recorder(here.out)
    here.stop = Stop()
    await here.finish(here.run(processor, size=10), 100)

    assert [offset for _, offset in processor.applied] == list(range(80, 100))


async def test_offsets_without_records_are_committed(place: Callable[..., Place]) -> None:
    """Transaction markers and aborted records: otherwise they would be lag for ever."""
    here = place()
    await here.send(*numbers(3))
    producer = Producer(client.client_config(here.settings, "test") | {"transactional.id": here.name})
    producer.init_transactions(30)
    task = here.run(processor := Recorder(here.out))
    for aborted in (True, False, True):
        producer.begin_transaction()
        producer.produce(here.name, b"in a transaction", partition=0)
        producer.flush(30)
        if aborted:
            producer.abort_transaction()
        else:
            producer.commit_transaction()
    await here.finish(task, 9)  # three records, then three times a record and a marker
    assert [offset for _, offset in processor.applied] == [0, 1, 2, 5]
    assert await here.produced() == {0: [*numbers(3), b"in a transaction"]}
