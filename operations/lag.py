"""Lag of consumer groups per partition, in messages and in seconds.

Seconds are the present time minus the timestamp of the record at the committed offset: how long the oldest unprocessed
record has waited. No history and no running consumer are needed, so the value is also right for a stopped group, and
for one that has never committed (its next record is the earliest one). The timestamps are read, not interpolated: one
record per lagging partition, with consumers that join no group and commit nothing.

Messages are counted from the first existing record. Empty offsets, left by compaction or transaction markers, before it
are not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import OffsetSpec

from infra.errors import DependencyUnavailable
from infra.kafka.client import admin, metadata, reader
from infra.kafka.received import with_tenants
from infra.kafka_settings import KafkaSettings

OK = "ok"  # nothing is waiting
BEHIND = "behind"
NEW = "new"  # records wait and the group has never committed here
GAP = "gap"  # the committed offset's record is gone (retention): records were deleted before they were read
BEYOND = "beyond"  # committed past the end: the topic was created anew, the consumer will begin at its start
HELD = "held"  # the waiting records follow an open transaction of a producer: consumers cannot read them yet
UNREAD = "unread"  # the record could not be read in time: seconds are unknown, messages are an upper bound

_WORST = (OK, BEHIND, NEW, UNREAD, HELD, BEYOND, GAP)
_REQUEST_S = 10.0
_CACHE_S = 15.0
_Spot = tuple[str, int]
_Position = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """Lag of one group on one partition. ``committed`` None: never; ``seconds`` None: unknown (see ``state``)."""

    group: str
    topic: str
    partition: int
    committed: int | None
    start: int
    end: int
    lag: int
    seconds: float | None
    state: str


@dataclass(frozen=True, slots=True)
class Lag:
    """Lag of a group: the messages of all partitions, the highest seconds and the worst state of a partition."""

    messages: int
    seconds: float | None
    state: str


@dataclass(frozen=True, slots=True)
class _First:
    """The first readable record at or after an offset. ``timestamp_ms`` None: there is none, ``offset`` is the end."""

    offset: int
    timestamp_ms: int | None
    read_at: float


class LagReader:
    """Reads lag repeatedly, over open connections; for one thread at a time. Close it.

    ``groups`` maps consumer groups to topics (default: those of the installed processes); the topics of tenants are
    added to the group that reads lead events. ``timeout_s`` is the timeout
    of reading timestamps, in seconds; partitions that were not read by then have the state ``unread``.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        groups: Mapping[str, Sequence[str]] | None = None,
        *,
        timeout_s: float = 5,
        now: Callable[[], float] = time.time,
    ) -> None:
        if groups is None:
            from infra.kafka.topics import installed_groups  # noqa: PLC0415 - other groups do not need the files

            groups = installed_groups()
        self._groups = groups
        self._timeout_s = timeout_s
        self._now = now
        self._admin = admin(settings, "lag")
        self._consumer = reader(
            settings,
            "leadstream-lag",  # required by the client; no consumer joins it
            {
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
                # Small fetches: only one record per partition is needed, but a fetch returns at least one whole batch.
                "fetch.message.max.bytes": 262_144,
                "queued.min.messages": 1,
                "fetch.queue.backoff.ms": 5,
                "fetch.error.backoff.ms": 20,
                "fetch.wait.max.ms": 20,
                "topic.metadata.refresh.fast.interval.ms": 50,
            },
        )
        # One consumer per group, without joining it. An admin client cannot be used: its request for offsets crashes
        # librdkafka (2.16) when the group's coordinator has moved.
        self._offset_readers = {group: reader(settings, group) for group in groups}
        self._remembered: dict[_Position, _First] = {}

    def read(self, only: Iterable[str] = ()) -> list[PartitionLag]:
        """Return the lag of every partition of every group (or of the groups in ``only``), in their order.

        Topics that the broker does not have are omitted; ``leadstream topics diff`` names them.

        Raises:
            DependencyUnavailable: Kafka is unavailable, or refuses the login.

        """
        chosen = {group: topics for group, topics in self._groups.items() if not only or group in set(only)}
        try:
            return self._read(chosen)
        except KafkaException as error:
            raise DependencyUnavailable("Kafka", error.args[0].name()) from error

    def totals(self) -> dict[str, Lag]:
        """Return the lag of each group; it is 0 for a group whose topics do not exist."""
        return totals(self.read(), self._groups)

    def close(self) -> None:
        """Close the connections."""
        for consumer in (self._consumer, *self._offset_readers.values()):
            consumer.close()

    def _read(self, groups: Mapping[str, Sequence[str]]) -> list[PartitionLag]:
        there = metadata(
            self._consumer, timeout_s=_REQUEST_S
        ).topics  # this also makes the leaders known to the consumer
        groups = {group: with_tenants(topics, there) for group, topics in groups.items()}
        spots = {topic: sorted(there[topic].partitions) for ts in groups.values() for topic in ts if topic in there}
        # Committed offsets are read before end offsets: offsets only increase, so lag is never negative.
        committed = self._committed(groups, spots)
        starts = self._offsets(spots, OffsetSpec.earliest())
        ends = self._offsets(spots, OffsetSpec.latest())
        rows = [
            _row(group, topic, partition, committed.get((group, topic, partition)), starts, ends)
            for group, topics in groups.items()
            for topic in topics
            for partition in spots.get(topic, ())
            if (topic, partition) in starts and (topic, partition) in ends
        ]
        firsts = self._firsts({_position(row) for row in rows if row.lag})
        now = self._now()
        return [_measured(row, firsts.get(_position(row)), now) if row.lag else row for row in rows]

    def _committed(
        self, groups: Mapping[str, Sequence[str]], spots: Mapping[str, Sequence[int]]
    ) -> dict[tuple[str, str, int], int]:
        found: dict[tuple[str, str, int], int] = {}
        for group, topics in groups.items():
            wanted = [TopicPartition(topic, p) for topic in topics for p in spots.get(topic, ())]
            for spot in self._offset_readers[group].committed(wanted, timeout=_REQUEST_S) if wanted else ():
                if spot.error is not None:
                    raise KafkaException(spot.error)
                if spot.offset >= 0:
                    found[group, spot.topic, spot.partition] = spot.offset
        return found

    def _offsets(self, spots: Mapping[str, Sequence[int]], spec: OffsetSpec) -> dict[_Spot, int]:
        wanted = {TopicPartition(topic, p): spec for topic, partitions in spots.items() for p in partitions}
        if not wanted:
            return {}
        futures = self._admin.list_offsets(wanted, request_timeout=_REQUEST_S)
        return {(spot.topic, spot.partition): future.result().offset for spot, future in futures.items()}

    def _firsts(self, positions: set[_Position]) -> dict[_Position, _First]:
        fresh = self._now() - _CACHE_S  # compaction may take a record away, so a position is read again after a time
        known = {p: first for p, first in self._remembered.items() if p in positions and first.read_at > fresh}
        left = positions - known.keys()
        deadline = time.monotonic() + self._timeout_s
        while left and time.monotonic() < deadline:
            # Two groups at different offsets of one partition take two rounds: a consumer has one position in it.
            turn = {(topic, partition): offset for topic, partition, offset in sorted(left)}
            read = self._read_at(turn, deadline)
            known |= read
            left -= {(topic, partition, offset) for (topic, partition), offset in turn.items()}
        self._remembered = {p: first for p, first in known.items() if first.timestamp_ms is not None}
        return known

    def _read_at(self, turn: Mapping[_Spot, int], deadline: float) -> dict[_Position, _First]:
        found: dict[_Position, _First] = {}
        pending = dict(turn)
        self._consumer.assign([TopicPartition(topic, p, offset) for (topic, p), offset in turn.items()])
        try:
            while pending and (left := deadline - time.monotonic()) > 0:
                for message in self._consumer.consume(1, left):
                    self._note(message, pending, found)
        finally:
            self._consumer.unassign()
        return found

    def _note(self, message: Message, pending: dict[_Spot, int], found: dict[_Position, _First]) -> None:
        error = message.error()
        topic, partition = message.topic() or "", message.partition() or 0
        if (error is not None and error.code() != KafkaError._PARTITION_EOF) or (topic, partition) not in pending:  # noqa: SLF001 - librdkafka's own name
            return
        kind, timestamp_ms = (TIMESTAMP_NOT_AVAILABLE, 0) if error is not None else message.timestamp()
        found[topic, partition, pending.pop((topic, partition))] = _First(
            message.offset() or 0, None if kind == TIMESTAMP_NOT_AVAILABLE else timestamp_ms, self._now()
        )
        # Drops its other records from the queue, so that the next fetch returns another partition.
        self._consumer.incremental_unassign([TopicPartition(topic, partition)])


def total_lag(settings: KafkaSettings) -> dict[str, Lag]:
    """Return the lag of each installed group. For repeated reads use a :class:`LagReader`."""
    lag = LagReader(settings)
    try:
        return lag.totals()
    finally:
        lag.close()


def totals(rows: Sequence[PartitionLag], groups: Iterable[str]) -> dict[str, Lag]:
    """Return the lag of each group of ``groups``, from the rows of its partitions."""
    summed = {}
    for group in groups:
        own = [row for row in rows if row.group == group]
        known = [row.seconds for row in own if row.seconds is not None]
        worst = max((row.state for row in own), key=_WORST.index, default=OK)
        summed[group] = Lag(sum(row.lag for row in own), max(known, default=None if own else 0.0), worst)
    return summed


def _row(
    group: str,
    topic: str,
    partition: int,
    committed: int | None,
    starts: Mapping[_Spot, int],
    ends: Mapping[_Spot, int],
) -> PartitionLag:
    start, end = starts[topic, partition], ends[topic, partition]
    state, lag = OK, 0
    if committed is None:
        state, lag = (NEW, end - start) if end > start else (OK, 0)
    elif committed > end:
        state, lag = BEYOND, end - start
    elif committed < start:
        state, lag = GAP, end - start
    elif committed < end:
        state, lag = BEHIND, end - committed
    return PartitionLag(group, topic, partition, committed, start, end, lag, None if lag else 0.0, state)


def _position(row: PartitionLag) -> _Position:
    return row.topic, row.partition, row.end - row.lag


def _measured(row: PartitionLag, first: _First | None, now: float) -> PartitionLag:
    """Return ``row`` with the lag, seconds and state that follow from the first record at its position."""
    lag, seconds, state = row.lag, row.seconds, row.state
    if first is None:
        state = UNREAD
    elif first.timestamp_ms is not None:
        # The first record may be after the end, which was read earlier.
        lag, seconds = max(row.end - first.offset, 1), max(0.0, now - first.timestamp_ms / 1000)
    elif first.offset < row.end:
        lag, state = row.end - first.offset, HELD
    else:  # only empty offsets up to the end: no record waits
        lag, seconds, state = 0, 0.0, GAP if row.state == GAP else OK
    return PartitionLag(row.group, row.topic, row.partition, row.committed, row.start, row.end, lag, seconds, state)
