"""The partitions assigned to one member of a consumer group: fetching their records, committing their offsets.

Guarantees:

- Only what was delivered is committed, and only of partitions that have been ours since it was read: each assignment
  has a number, a record carries the one that its partition had, and a commit compares the two.
- Nothing that was read before a rebalance is mixed with what came after it: a partition that was revoked and assigned
  again is read again from its committed offset, so what was read of it before is dropped.
- A partition is given up when the batches in flight are committed, or after ``_REVOKE_S`` seconds.
- At the end of a partition, offsets without a record (transaction markers, aborted and compacted records) are committed
  too, so that they are not shown as lag.
- The client is called by one thread at a time: every call has to be made by :meth:`Assignment.call`, and
  :meth:`Assignment.close` waits for the one that runs (librdkafka does not survive a close under a running poll).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from infra import metrics
from infra.errors import ClientFailed
from infra.kafka.batch_limits import BatchLimits
from infra.kafka.headers import make_readable
from infra.runtime import Status, log

IDLE_S = 0.25  # maximum wait for a first record: bounds how late a stop is noticed
_COMMIT_EVERY_S = 0.25  # how long a delivered batch waits to be committed together with the next ones
_COMMIT_RETRY_S = 1.0
_FIRST_MEAN_BYTES = 16_384.0
_REVOKE_S = 10.0  # maximum delay of a revocation

_NO_TOPIC = (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.UNKNOWN_TOPIC_OR_PART)

Partition = tuple[str, int]  # topic and number
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Fetched:
    """A batch of records; for each of their partitions the next offset and the number of its assignment.

    It may have no records, only offsets to commit: see the module's guarantees.
    """

    messages: list[Message] = field(default_factory=list)
    next_offsets: dict[Partition, int] = field(default_factory=dict)
    assignments: dict[Partition, int] = field(default_factory=dict)


class Assignment:
    """The partitions assigned to ``consumer`` in ``group``. Owns the consumer and the thread that calls it; close it.

    ``status`` becomes ready with the first assignment.
    """

    def __init__(self, consumer: Consumer, group: str, status: Status) -> None:
        self._consumer = consumer
        self._group = group
        self._status = status
        self._log = log(group)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"consumer-{group}")
        # Shared with the event loop's thread. Rebalance callbacks run in the consumer's thread, during a poll.
        self._lock = threading.Condition()
        self._in_flight = 0  # batches that are fetched and not yet delivered
        self._delivered: dict[
            Partition, tuple[int, int]
        ] = {}  # not committed yet: number of the assignment, next offset
        self._delivered_records = 0
        self._commit_at = 0.0
        self._count = 0  # number of the newest assignment
        self._current: dict[Partition, int] = {}  # the assigned partitions, each with its assignment's number
        self._carried: list[Message] = []  # fetched while paused or above the limits, for the next poll
        self._positions: dict[Partition, int] = {}  # the next offset of each partition that was read
        self._named: frozenset[str] = frozenset()  # the topics that must exist: those of patterns come and go
        self._mean_bytes = _FIRST_MEAN_BYTES  # of the latest records, for the limits

    async def call(self, function: Callable[[], Result]) -> Result:
        """Run ``function`` in the consumer's thread, after the calls before it."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def subscribe(self, topics: Sequence[str]) -> None:
        """Join the group to read ``topics``; one that begins with ``^`` is a pattern (librdkafka's)."""
        self._named = frozenset(topic for topic in topics if not topic.startswith("^"))
        self._consumer.subscribe(
            list(topics), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    async def close(self) -> None:
        """Wait for the running call, commit the delivered records and leave the group."""
        with self._lock:
            self._in_flight = 0  # no batch is delivered any more, so the revocation must not wait for one
            self._lock.notify_all()
        await self.call(self._consumer.close)
        self._thread.shutdown(wait=False)

    # -- reading (in the consumer's thread) ---------------------------------------------------------------------------

    def poll(self, limits: BatchLimits) -> Fetched:
        """Return a batch: the available records, or those that arrive within the linger time after the first one.

        Raises:
            ClientFailed: the consumer failed permanently, such as when a member with the same instance name joined.
            KafkaException: reading a named topic is not authorized, or it does not exist.

        """
        carried, self._carried = self._carried, []
        found = carried or self._consume(1, IDLE_S)
        size = sum(map(limits.bytes_of, found))
        end = time.monotonic() + limits.linger_ms / 1000
        while found and len(found) < limits.size and size < limits.max_bytes and (wait := end - time.monotonic()) > 0:
            # Few at a time: the records that a call returns can be larger than the ones before.
            count = min(limits.size - len(found), int((limits.max_bytes - size) / self._mean_bytes) + 1)
            before = dict(self._current)  # only a call to the consumer changes it, and none is running
            more = self._consume(count, wait)
            if self._current != before:
                found = [
                    m for m in found if before.get(_partition(m)) == self._current.get(_partition(m)) or _failed(m)
                ]
            if more:
                added = sum(map(limits.bytes_of, more))
                self._mean_bytes = max(added / len(more), self._mean_bytes / 2)
                size += added
            found += more
        return self._fetched(found, limits)

    def _fetched(self, found: list[Message], limits: BatchLimits) -> Fetched:
        """Return the records of ``found`` as a batch; keep those above the limits for the next one."""
        fetched, size = Fetched(), 0
        for index, message in enumerate(found):
            if fetched.messages and size >= limits.max_bytes:
                self._carried = found[index:]
                break
            partition = _partition(message)
            if _is_end(message):
                position = message.offset()
                if self._positions.get(partition) == position:
                    continue  # nearly always: the last offset was that of a record
            elif self._is_record(message) and partition in self._current:
                size += limits.bytes_of(message)
                fetched.messages.append(message)
                position = message.offset() + 1
            else:
                continue
            if partition in self._current:
                self._positions[partition] = position
                fetched.assignments[partition] = self._current[partition]
                fetched.next_offsets[partition] = position
        return fetched

    def poll_paused(self, limits: BatchLimits) -> None:
        """Poll with all partitions paused, to stay in the group; keep records that still arrive for :meth:`poll`."""
        # At each call: partitions may have been assigned since the last one.
        self._consumer.pause(self._consumer.assignment())
        slipped_through = self._consume(limits.size, 0)  # first: a rebalance in it may drop what is carried
        # Errors are dealt with at once; records of a partition that was revoked in that very call are dropped.
        self._carried += [
            m for m in slipped_through if (_is_end(m) or self._is_record(m)) and _partition(m) in self._current
        ]

    def resume(self) -> None:
        """Resume fetching from all partitions."""
        self._consumer.resume(self._consumer.assignment())

    def _consume(self, limit: int, wait_s: float) -> list[Message]:
        if time.monotonic() >= self._commit_at:
            self._commit()
        found: list[Message] = self._consumer.consume(limit, wait_s)
        for message in found:
            make_readable(message)
        return found

    def _is_record(self, message: Message) -> bool:
        error = message.error()
        if error is None:
            return True
        if error.fatal() or error.code() == KafkaError._FATAL:  # noqa: SLF001 - librdkafka's own name
            raise ClientFailed(f"the Kafka consumer of {self._group} failed permanently: {error.str()}")
        if error.code() in _NO_TOPIC and (not message.topic() or message.topic() in self._named):
            raise KafkaException(error)
        self._log.warning("kafka error", extra={"fields": {"error": error.name()}})
        return False

    # -- from fetched to committed (in any thread) --------------------------------------------------------------------

    def begin(self) -> None:
        """Count a batch as in flight until :meth:`end`: a rebalance waits for it."""
        with self._lock:
            self._in_flight += 1

    def owns_any(self, assignments: Mapping[Partition, int]) -> bool:
        """Return whether any partition of a batch is still assigned, without a revocation since the batch was read."""
        with self._lock:
            return any(self._current.get(partition) == number for partition, number in assignments.items())

    def delivered(
        self, next_offsets: Mapping[Partition, int], assignments: Mapping[Partition, int], count: int
    ) -> None:
        """Commit the offsets of a batch of ``count`` records soon: its effects are durable."""
        with self._lock:
            self._delivered |= {
                partition: (number, next_offsets[partition]) for partition, number in assignments.items()
            }
            self._delivered_records += count

    def end(self) -> None:
        """Count a batch as no longer in flight: it was delivered or dropped."""
        with self._lock:
            self._in_flight -= 1
            self._lock.notify_all()

    def _commit(self) -> None:
        """Commit several delivered batches at once: a commit costs the broker as much as a small batch.

        Called only in the consumer's thread. The client handles one call at a time: a commit from another thread would
        wait for the poll, and in a rebalance the poll would wait for that commit.
        """
        with self._lock:
            due, self._delivered = self._delivered, {}
            records, self._delivered_records = self._delivered_records, 0
            valid = {p: end for p, (number, end) in due.items() if self._current.get(p) == number}
        self._commit_at = time.monotonic() + _COMMIT_EVERY_S
        if valid:
            try:
                with metrics.BATCH_SECONDS.labels(self._group, "commit").time():
                    offsets = [TopicPartition(*partition, end) for partition, end in valid.items()]
                    self._consumer.commit(offsets=offsets, asynchronous=False)
            except KafkaException as error:
                # Not fatal: committed again soon. If the partitions were revoked, their new owner reprocesses the
                # records.
                self._log.warning("commit failed", extra={"fields": {"error": error.args[0].name()}})
                self._commit_at = time.monotonic() + _COMMIT_RETRY_S
                with self._lock:
                    self._delivered = due | self._delivered
                    self._delivered_records += records
                return
        metrics.RECORDS.labels(self._group).inc(records)

    # -- rebalances (in the consumer's thread, while it polls) ---------------------------------------------------------

    def _on_assign(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        with self._lock:
            self._count += 1
            self._current |= {(p.topic, p.partition): self._count for p in partitions}
        self._status.ready = True
        self._log.info("assigned", extra={"fields": {"partitions": _names(partitions)}})

    def _on_revoke(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        metrics.REBALANCES.labels(self._group, "revoked").inc(len(partitions))
        # Finish first: the new owner then starts at the committed offset. What is not finished in time is
        # reprocessed; what was polled and is not in a batch yet (carried) is fetched again by the new owner.
        with self._lock:
            finished = self._lock.wait_for(lambda: self._in_flight <= 0, _REVOKE_S)
        self._commit()
        self._forget(partitions)
        self._log.info("revoked", extra={"fields": {"partitions": _names(partitions), "finished": finished}})

    def _on_lost(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        metrics.REBALANCES.labels(self._group, "lost").inc(len(partitions))
        self._forget(partitions)
        self._log.warning("lost", extra={"fields": {"partitions": _names(partitions)}})

    def _forget(self, partitions: list[TopicPartition]) -> None:
        left = {(p.topic, p.partition) for p in partitions}
        with self._lock:
            for partition in left:
                self._current.pop(partition, None)
                self._positions.pop(partition, None)
        self._carried = [m for m in self._carried if _partition(m) not in left]


def _is_end(message: Message) -> bool:
    """Return whether ``message`` is the report that the end of a partition was reached."""
    error = message.error()
    return error is not None and error.code() == KafkaError._PARTITION_EOF  # noqa: SLF001 - librdkafka's own name


def _failed(message: Message) -> bool:
    return message.error() is not None and not _is_end(message)


def _partition(message: Message) -> Partition:
    return message.topic(), message.partition()


def _names(partitions: Sequence[TopicPartition]) -> str:
    return " ".join(f"{p.topic}/{p.partition}" for p in partitions)
