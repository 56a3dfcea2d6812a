"""What may be committed, without a broker: Faust's consumer fed by hand."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from faust.transport.consumer import Consumer as Base
from faust.transport.consumer import ThreadDelegateConsumer
from faust.types import TP

from infra.kafka.producer import Output
from infra.settings import Settings
from streams.faust.agent import build
from streams.faust.ordered import OrderedPipe, Record

P0 = TP("t", 0)
# What we override relies on how these work; read them again, and try the chaos tests, before you change this.
READ = {
    "getmany": "4b168d84882a",
    "_drain_messages": "44a2500309e8",
    "force_commit": "cc094614d22c",
    "on_partitions_revoked": "d04b7ae72c6f",
    "perform_seek": "0e8c130ff4b0",
}


async def handle(_: Record) -> Sequence[Output]:
    return []


async def deliver(_: Sequence[Output]) -> None:
    return


class Fed:
    """Our consumer; ``read`` gives it what aiokafka would have fetched."""

    def __init__(self, consumer: Any) -> None:
        self.consumer = consumer
        self.sought: list[tuple[Any, ...]] = []
        self.committed: dict[Any, int] = {}
        self.on_committed: Callable[[], object] = dict
        consumer.assignment = lambda: {P0}
        consumer.highwater = lambda _: 100
        consumer._thread.call_thread = self.call_thread
        consumer._thread.seek_to_committed = self.seek_to_committed

    async def call_thread(self, what: Any, *arguments: Any) -> None:
        del what
        self.sought.append(arguments)

    async def seek_to_committed(self) -> dict[Any, int]:
        found = dict(self.committed)
        self.on_committed()
        return found

    async def read(self, *offsets: int) -> list[Any]:
        """Return of the records at ``offsets``, fetched now, those that reach the handler."""
        return [message for message in await self.fetch(*offsets) if await self.consumer.take(message)]

    async def fetch(self, *offsets: int) -> list[Any]:
        record = {"topic": "t", "partition": 0, "timestamp": 0, "timestamp_type": 0, "headers": (), "key": b"k"}
        rest = {"value": b"", "checksum": None, "serialized_key_size": 1, "serialized_value_size": 0}
        records = {P0: [SimpleNamespace(offset=offset, **record, **rest) for offset in offsets]}

        async def fetched(_: float) -> Any:
            return records, {P0}

        self.consumer._wait_next_records = fetched
        return [message async for _, message in self.consumer.getmany(1.0)]

    def committable(self) -> int | None:
        offsets = self.consumer._filter_committable_offsets(self.consumer._filter_tps_with_pending_acks())
        found: int | None = offsets.get(P0)
        return found


@pytest.fixture
async def fed(tmp_path: Path) -> AsyncIterator[Fed]:
    settings = Settings.load({"LEADSTREAM_HOME": str(tmp_path)})
    fed = Fed(build(settings, OrderedPipe("test", handle, deliver), "t").consumer)
    fed.committed = {P0: 10}
    await fed.consumer.perform_seek()
    yield fed
    fed.consumer._thread.thread_loop.close()  # made by its thread's constructor, which never starts here


async def test_a_commit_never_passes_a_record_in_flight(fed: Fed) -> None:
    messages = await fed.read(10, 11, 12)
    assert fed.committable() is None
    for index in (1, 2):
        fed.consumer.ack(messages[index])
        assert fed.committable() is None
    fed.consumer.ack(messages[0])
    assert fed.committable() == 13


async def test_missing_records_are_read_again_before_anything_later_is_taken(fed: Fed) -> None:
    assert await fed.read(15, 16) == []
    assert fed.sought == [(P0, 10)]
    assert [message.offset for message in await fed.read(*range(10, 17))] == list(range(10, 17))


async def test_a_gap_that_stays_is_real(fed: Fed) -> None:
    for _ in range(3):
        assert await fed.read(15) == []
    [message] = await fed.read(15)
    fed.consumer.ack(message)
    assert fed.committable() == 16


async def test_what_was_taken_is_not_taken_again(fed: Fed) -> None:
    messages = await fed.read(10, 11, 12)
    fed.consumer.ack(messages[0])
    assert [message.offset for message in await fed.read(10, 11, 12, 13)] == [13]
    assert fed.committable() == 11


async def test_what_faust_drops_is_read_again_before_what_follows_it(fed: Fed) -> None:
    first, *rest = await fed.fetch(10, 11, 12)
    del first  # dropped between the fetch and the agent
    assert [await fed.consumer.take(message) for message in rest] == [False, False]
    assert fed.sought == [(P0, 10)], "one seek for all that follows the gap"
    assert [message.offset for message in await fed.read(10, 11, 12)] == [10, 11, 12]


async def test_the_rest_of_what_was_fetched_before_a_rebalance_overtakes_nothing(fed: Fed) -> None:
    stale = await fed.fetch(10, 11, 12)
    await fed.consumer.on_partitions_assigned({P0})
    await fed.consumer.perform_seek()
    assert [await fed.consumer.take(message) for message in stale[1:]] == [False, False]
    assert [message.offset for message in await fed.read(10, 11, 12)] == [10, 11, 12]


async def test_nothing_is_taken_before_it_is_known_where_the_partition_starts(fed: Fed) -> None:
    await fed.consumer.on_partitions_assigned({P0})
    assert await fed.read(50, 51) == []
    assert fed.committable() is None


async def test_an_answer_about_an_earlier_assignment_is_not_believed(fed: Fed) -> None:
    await fed.consumer.on_partitions_assigned({P0})
    fed.committed = {P0: 900}
    fed.on_committed = fed.consumer._forget  # a rebalance while the answer is under way
    await fed.consumer.perform_seek()
    assert fed.committable() is None
    fed.committed, fed.on_committed = {P0: 10}, dict
    await fed.consumer.perform_seek()
    assert [message.offset for message in await fed.read(10, 11)] == [10, 11]


async def test_an_ack_from_an_earlier_assignment_moves_nothing(fed: Fed) -> None:
    [old] = await fed.read(10)
    await fed.consumer.on_partitions_assigned({P0})
    await fed.consumer.perform_seek()
    await fed.read(10, 11)
    fed.consumer.ack(old)
    assert fed.committable() in {None, 11}, "10 itself is done, 11 is not"


def test_faust_is_the_one_that_was_read() -> None:
    for name, digest in READ.items():
        source = inspect.getsource(getattr(Base, name))
        assert hashlib.sha256(source.encode()).hexdigest()[:12] == digest, f"Faust's Consumer.{name} has changed"
    assert issubclass(ThreadDelegateConsumer, Base)
