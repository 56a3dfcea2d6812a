"""The measured lag of known records on a real broker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import NewTopic

from infra.errors import DependencyUnavailable
from infra.kafka import client
from infra.kafka_settings import KafkaSettings
from infra.settings import Settings
from operations.lag import LagReader, PartitionLag, totals

pytestmark = pytest.mark.integration
NOW = 1_700_000_000.0  # the reader's time, in seconds since 1970; in the past, as brokers reject future timestamps
LONG = {"retention.ms": "-1", "message.timestamp.before.max.ms": "9223372036854775807"}


class Place:
    """A topic for a single test, with a stopped group."""

    def __init__(self, settings: Settings, partitions: int, config: dict[str, str]) -> None:
        self.settings = settings
        self.topic = f"test-lag-{uuid4().hex[:8]}"
        self.group = f"group-{self.topic}"
        self.admin = client.admin(settings, "test")
        new = NewTopic(self.topic, partitions, 1, config=LONG | config)
        self.admin.create_topics([new])[self.topic].result()

    def write(self, ages: list[float], *, partition: int = 0, keys: list[str] | None = None, **config: Any) -> None:
        """Write records that are ``ages`` seconds old at NOW."""
        producer = client.producer(self.settings, "test", config=config)
        if "transactional.id" in config:
            producer.init_transactions(10)
            producer.begin_transaction()
        failed: list[Any] = []
        for i, age in enumerate(ages):
            key = keys[i] if keys else None
            producer.produce(
                self.topic,
                b"x" * 100,
                key,
                partition,
                timestamp=int((NOW - age) * 1000),
                on_delivery=lambda error, _: failed.append(error) if error else None,
            )
            producer.flush(10)
        assert failed == []
        self.producer = producer

    def commit(self, offset: int, partition: int = 0, group: str = "") -> None:
        consumer = client.reader(self.settings, group or self.group)
        consumer.commit(offsets=[TopicPartition(self.topic, partition, offset)], asynchronous=False)
        consumer.close()

    def read(self, *groups: str) -> list[PartitionLag]:
        reader = LagReader(self.settings, {g: [self.topic] for g in groups or (self.group,)}, now=lambda: NOW)
        try:
            return reader.read()
        finally:
            reader.close()

    def one(self) -> PartitionLag:
        (row,) = self.read()
        return row


@pytest.fixture
def place(stack: Any) -> Iterator[Callable[..., Place]]:
    made: list[Place] = []

    def make(partitions: int = 1, **config: str) -> Place:
        made.append(Place(stack.settings, partitions, {k.replace("_", "."): v for k, v in config.items()}))
        return made[-1]

    yield make
    for each in made:
        each.admin.delete_topics([each.topic])[each.topic].result()


def measured(row: PartitionLag) -> tuple[int, float | None, str]:
    return row.lag, row.seconds, row.state


def test_the_lag_of_a_stopped_group_is_the_age_of_its_next_record(place: Any) -> None:
    here = place()
    here.write([300, 200, 100, 50])
    here.commit(2)
    assert measured(here.one()) == (2, 100.0, "behind")


def test_the_lag_of_a_group_that_never_committed_is_the_age_of_the_first_record(place: Any) -> None:
    here = place()
    here.write([300, 200])
    row = here.one()
    assert row.committed is None
    assert measured(row) == (2, 300.0, "new")


def test_a_group_that_has_read_everything_has_no_lag(place: Any) -> None:
    here = place()
    here.write([300, 200])
    here.commit(2)
    assert measured(here.one()) == (0, 0.0, "ok")


def test_an_empty_partition_has_no_lag(place: Any) -> None:
    assert measured(place().one()) == (0, 0.0, "ok")


def test_records_deleted_before_they_were_read_are_a_gap(place: Any) -> None:
    here = place()
    here.write([500, 400, 300, 200])
    here.commit(1)
    spot = TopicPartition(here.topic, 0, 3)
    here.admin.delete_records([spot])[spot].result()
    row = here.one()
    assert (row.committed, row.start, row.end) == (1, 3, 4)
    assert measured(row) == (1, 200.0, "gap")


def test_a_recreated_topic_is_read_from_its_start(place: Any) -> None:
    here = place()
    here.write([500, 400])
    here.commit(50)
    assert measured(here.one()) == (2, 500.0, "beyond")


def test_offsets_that_compaction_left_empty_are_not_counted(place: Any) -> None:
    here = place(
        cleanup_policy="compact", segment_ms="100", min_cleanable_dirty_ratio="0.0", max_compaction_lag_ms="100"
    )
    here.write([900, 800, 700, 600], keys=["a", "a", "a", "b"])
    here.commit(0)
    # The newest segment is never compacted: write another key until the first two records are deleted.
    deadline = time.monotonic() + 90
    while (row := here.one()).seconds == 900:
        assert time.monotonic() < deadline, "the broker did not compact"
        here.write([1], keys=["c"])
    assert row.seconds == 700
    assert row.lag == row.end - 2


def test_the_marker_that_ends_a_transaction_is_not_counted(place: Any) -> None:
    here = place()
    here.write([300, 200], **{"transactional.id": here.topic})
    here.producer.commit_transaction(10)
    here.commit(2)
    row = here.one()
    assert (row.committed, row.end) == (2, 3)
    assert measured(row) == (0, 0.0, "ok")


def test_an_aborted_transaction_is_not_counted(place: Any) -> None:
    here = place()
    here.write([300, 200], **{"transactional.id": here.topic})
    here.producer.abort_transaction(10)
    assert measured(here.one()) == (0, 0.0, "ok")


def test_records_behind_an_open_transaction_have_the_state_held(place: Any) -> None:
    here = place()
    here.write([300, 200], **{"transactional.id": here.topic})
    assert measured(here.one()) == (2, None, "held")
    here.producer.abort_transaction(10)


def test_the_timestamps_of_the_broker_are_used_if_the_topic_has_them(stack: Any, place: Any) -> None:
    here = place(message_timestamp_type="LogAppendTime")
    here.write([5_000_000])
    reader = LagReader(stack.settings, {here.group: [here.topic]}, now=lambda: time.time() + 1000)
    (row,) = reader.read()
    reader.close()
    assert row.seconds is not None
    assert 1000 <= row.seconds < 2000  # not 5,000,000, which is by the producer's clock


def test_a_clock_that_is_ahead_does_not_make_lag_negative(place: Any) -> None:
    here = place(message_timestamp_after_max_ms="9223372036854775807")
    here.write([-500])
    assert measured(here.one()) == (1, 0.0, "new")


def test_every_partition_and_every_group_has_its_own_lag(place: Any) -> None:
    here = place(partitions=8)
    for partition in range(8):
        here.write([100 + partition, 50], partition=partition)
    here.commit(1, partition=3, group="second-" + here.group)
    rows = here.read(here.group, "second-" + here.group)
    assert [row.seconds for row in rows[:8]] == [100.0 + p for p in range(8)]
    assert [row.seconds for row in rows[8:]] == [50.0 if p == 3 else 100.0 + p for p in range(8)]
    summed = totals(rows, [here.group])[here.group]
    assert (summed.messages, summed.seconds, summed.state) == (16, 107.0, "new")


def test_large_batches_in_many_partitions_are_each_read(place: Any) -> None:
    here = place(partitions=4)
    producer = client.producer(here.settings, "test", config={"linger.ms": 200, "batch.size": 1_000_000})
    for i in range(8000):
        producer.produce(here.topic, b"x" * 400, None, i % 4, timestamp=int((NOW - 70) * 1000))
        producer.poll(0)
    producer.flush(20)
    assert [measured(row) for row in here.read()] == [(2000, 70.0, "new")] * 4


def test_a_reader_can_be_used_repeatedly(place: Any) -> None:
    here = place()
    here.write([300, 200, 100])
    reader = LagReader(here.settings, {here.group: [here.topic]}, now=lambda: NOW)
    seen = []
    for offset in range(4):
        here.commit(offset)
        seen += [(row.lag, row.seconds) for row in reader.read() + reader.read()]
    reader.close()
    assert seen == [(3, 300), (3, 300), (2, 200), (2, 200), (1, 100), (1, 100), (0, 0), (0, 0)]


def test_reading_creates_no_group_and_commits_nothing(place: Any) -> None:
    here = place()
    here.write([300])
    here.one()
    known = {g.group_id for g in here.admin.list_consumer_groups().result().valid}
    assert "leadstream-lag" not in known
    assert here.one().committed is None


def test_a_topic_that_does_not_exist_is_omitted(stack: Any) -> None:
    reader = LagReader(stack.settings, {"nobody": ["test-lag-no-such-topic"]})
    assert reader.read() == []
    assert reader.totals()["nobody"].messages == 0
    reader.close()


def test_an_unavailable_broker_is_reported() -> None:
    reader = LagReader(KafkaSettings(kafka_bootstrap="127.0.0.1:1"), {"nobody": ["leads.received"]})
    with pytest.raises(DependencyUnavailable, match="Kafka"):
        reader.read()
    reader.close()
