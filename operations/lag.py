"""Lag of consumer groups, in messages and in seconds, per partition.

Seconds are now minus the timestamp of the record at the committed offset: how long the oldest unprocessed record has
waited. That needs no history and no running consumer, so it is right for a stopped one and for one that never committed
(then the earliest record is the next). It is read, not interpolated: one record a lagging partition, all partitions at
once, by consumers that join no group and commit nothing.

Messages are counted from the first record that exists: offsets that compaction or transaction markers left empty do
not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import OffsetSpec

from infra.errors import DependencyUnavailable
from infra.kafka.client import admin, metadata, reader
from infra.kafka_settings import KafkaSettings

OK = "ok"  # nothing is waiting
BEHIND = "behind"
NEW = "new"  # records wait and the group has never committed here
GAP = "gap"  # the committed offset's record is gone (retention): records were deleted before they were read
BEYOND = "beyond"  # committed past the end: the topic was created anew, the consumer will begin at its start
HELD = "held"  # the waiting records follow an open transaction of a producer: consumers cannot read them yet
UNREAD = "unread"  # the record could not be read in time: seconds are unknown, messages are an upper bound

_WORST = (OK, BEHIND, NEW, UNREAD, HELD, BEYOND, GAP)
_ASK_S = 10.0
_REMEMBER_S = 15.0
_Spot = tuple[str, int]
_Position = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """One group on one partition. ``committed`` None: never; ``seconds`` None: cannot be known now (see ``state``)."""

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
    """A whole group: messages of all partitions, seconds of the worst one, the worst state."""

    messages: int
    seconds: float | None
    state: str


@dataclass(frozen=True, slots=True)
class _First:
    """The first readable record at or after an offset; ``timestamp_ms`` None: none is there (``offset``: the end)."""

    offset: int
    timestamp_ms: int | None
    read_at: float


class LagReader:
    """Reads lag repeatedly over connections that it keeps; one thread at a time. Close it.

    ``groups`` is consumer group -> topics (the installed processes' when left out); ``timeout_s`` bounds the reading of
    timestamps, after which a partition's state is ``unread``.
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
            from infra.kafka.topics import installed_groups  # noqa: PLC0415 - only who asks for ours needs the files

            groups = installed_groups()
        self._groups = groups
        self._timeout_s = timeout_s
        self._now = now
        self._admin = admin(settings, "lag")
        self._consumer = reader(
            settings,
            "leadstream-lag",  # asked for by the client; nothing joins it
            {
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
                # Little at a time: at least the first partition of a fetch gives a whole batch, however large.
                "fetch.message.max.bytes": 262_144,
                "queued.min.messages": 1,
                "fetch.queue.backoff.ms": 5,
                "fetch.error.backoff.ms": 20,
                "fetch.wait.max.ms": 20,
                "topic.metadata.refresh.fast.interval.ms": 50,
            },
        )
        # One for each group, none joins it: an admin client's request for offsets crashes librdkafka (2.16) when the
        # coordinator has moved, since an admin client has no group whose coordinator it could look for again.
        self._askers = {group: reader(settings, group) for group in groups}
        self._remembered: dict[_Position, _First] = {}

    def read(self, only: Iterable[str] = ()) -> list[PartitionLag]:
        """Return the lag of every partition of every group (or of the groups in ``only``), in their order.

        Topics that the broker does not have are left out; ``leadstream topics diff`` names them.

        Raises:
            DependencyUnavailable: Kafka is unavailable, or refuses the login.

        """
        asked = {group: topics for group, topics in self._groups.items() if not only or group in set(only)}
        try:
            return self._read(asked)
        except KafkaException as error:
            raise DependencyUnavailable("Kafka", error.args[0].name()) from error

    def totals(self) -> dict[str, Lag]:
        """Return the lag of each group as a whole; a group whose topics do not exist yet has none."""
        return totals(self.read(), self._groups)

    def close(self) -> None:
        """Close the connections."""
        for consumer in (self._consumer, *self._askers.values()):
            consumer.close()

    def _read(self, groups: Mapping[str, Sequence[str]]) -> list[PartitionLag]:
        there = metadata(self._consumer, timeout_s=_ASK_S).topics  # it then knows the leaders it reads from
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
            for spot in self._askers[group].committed(wanted, timeout=_ASK_S) if wanted else ():
                if spot.error is not None:
                    raise KafkaException(spot.error)
                if spot.offset >= 0:
                    found[group, spot.topic, spot.partition] = spot.offset
        return found

    def _offsets(self, spots: Mapping[str, Sequence[int]], spec: OffsetSpec) -> dict[_Spot, int]:
        wanted = {TopicPartition(topic, p): spec for topic, partitions in spots.items() for p in partitions}
        if not wanted:
            return {}
        asked = self._admin.list_offsets(wanted, request_timeout=_ASK_S)
        return {(spot.topic, spot.partition): future.result().offset for spot, future in asked.items()}

    def _firsts(self, positions: set[_Position]) -> dict[_Position, _First]:
        fresh = self._now() - _REMEMBER_S  # compaction may take a record away, so a position is read again after a time
        known = {p: first for p, first in self._remembered.items() if p in positions and first.read_at > fresh}
        left = positions - known.keys()
        deadline = time.monotonic() + self._timeout_s
        while left and time.monotonic() < deadline:
            # Two groups at different places of one partition take two rounds: a partition is read at one place a time.
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
        # Its other records are dropped from the queue, and the next fetch begins with a partition that still waits.
        self._consumer.incremental_unassign([TopicPartition(topic, partition)])


def total_lag(settings: KafkaSettings) -> dict[str, Lag]:
    """Return the lag of each installed group, once; for repeated reads keep a :class:`LagReader`."""
    lag = LagReader(settings)
    try:
        return lag.totals()
    finally:
        lag.close()


def totals(rows: Sequence[PartitionLag], groups: Iterable[str]) -> dict[str, Lag]:
    """Sum ``rows`` up by group."""
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
    """Return ``row`` with lag, seconds and state as the first record at its position shows them."""
    lag, seconds, state = row.lag, row.seconds, row.state
    if first is None:
        state = UNREAD
    elif first.timestamp_ms is not None:
        # The first record may be past the end that was asked for a moment before.
        lag, seconds = max(row.end - first.offset, 1), max(0.0, now - first.timestamp_ms / 1000)
    elif first.offset < row.end:
        lag, state = row.end - first.offset, HELD
    else:  # only empty offsets up to the end: nothing waits
        lag, seconds, state = 0, 0.0, GAP if row.state == GAP else OK
    return PartitionLag(row.group, row.topic, row.partition, row.committed, row.start, row.end, lag, seconds, state)
