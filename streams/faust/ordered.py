"""Processes records concurrently and acks them in order.

Guarantees:

- A record is acked after the broker has all of its outputs (``acks=all``) and after every earlier record of its
  partition is acked.
- Records of one key are processed one after the other, in order. Records of different keys are processed concurrently,
  at most ``max_inflight`` at a time; ``submit`` waits until there is capacity (back-pressure).
- When a handler raises DependencyUnavailable, it is retried with backoff and jitter. Any other exception ends the
  process with exit code 70, and the record is not acked.

Crash: the records that were not acked are processed again.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from infra import metrics, telemetry
from infra.kafka.producer import Output
from infra.retry import Retry
from infra.runtime import EX_SOFTWARE, Status, log

_MAX_UNACKED = 16  # multiple of max_inflight: bounds the finished records that wait for the ack of an earlier one


@dataclass(frozen=True, slots=True)
class Record:
    """A consumed record with the methods of ``confluent_kafka.Message``, so that code can handle both types."""

    topic_partition: tuple[str, int]
    raw_offset: int
    raw_key: bytes | None
    raw_value: bytes | None
    raw_headers: Sequence[tuple[str, bytes]] = ()

    def topic(self) -> str:
        """Return the name of the topic."""
        return self.topic_partition[0]

    def partition(self) -> int:
        """Return the number of the partition."""
        return self.topic_partition[1]

    def offset(self) -> int:
        """Return the offset."""
        return self.raw_offset

    def key(self) -> bytes | None:
        """Return the bytes of the key."""
        return self.raw_key

    def value(self) -> bytes | None:
        """Return the bytes of the value."""
        return self.raw_value

    def headers(self) -> Sequence[tuple[str, bytes]]:
        """Return the headers in order."""
        return self.raw_headers


Handler = Callable[[Record], Awaitable[Sequence[Output]]]
Deliver = Callable[[Sequence[Output]], Awaitable[None]]
Ack = Callable[[], object]


def exit_at_once(reason: str) -> None:
    """Log ``reason`` and the stack of every thread, and exit with code 70 without acks; does not return."""
    log("faust").critical("exiting at once", extra={"fields": {"reason": reason}})
    for handler in logging.getLogger().handlers:
        handler.flush()
    faulthandler.dump_traceback(file=sys.__stderr__ or sys.stderr, all_threads=True)
    os._exit(EX_SOFTWARE)


@dataclass(slots=True, eq=False)
class _Unacked:
    record: Record
    ack: Ack
    done: bool = False


@dataclass(eq=False)
class OrderedPipe:
    """Runs ``handler`` over submitted records and delivers its outputs, with the guarantees of this module.

    Args:
        group: the consumer group, for logs and metrics.
        handler: returns the outputs of one record.
        deliver: publishes outputs; returns when the broker has them.
        max_inflight: maximum number of records that are processed at the same time.
        status: shows the dependencies that are unavailable.
        fatal: is called with a reason when a handler fails, and must end the process. (In tests it may return; the
            record then stays unacked.)
        sleep: waits for a number of seconds, between attempts.

    """

    group: str
    handler: Handler
    deliver: Deliver
    max_inflight: int = 256
    status: Status = field(default_factory=Status)
    fatal: Callable[[str], None] = exit_at_once
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    inflight: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._log = log(self.group)
        self._retry = Retry(self.group, self.status, self.sleep)
        self._accepting = True
        self._unacked = 0
        self._queues: dict[tuple[str, int], deque[_Unacked]] = {}
        self._last_of_key: dict[bytes, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # the event loop holds only weak references to tasks
        self._changed = asyncio.Condition()

    @property
    def unavailable(self) -> set[str]:
        """The dependencies that are unavailable now."""
        return self._retry.unavailable

    @property
    def in_process(self) -> set[tuple[str, int]]:
        """The partitions that have records which are submitted and not acked."""
        return {topic_partition for topic_partition, queue in self._queues.items() if queue}

    async def submit(self, record: Record, ack: Ack) -> None:
        """Start to process ``record`` when there is capacity.

        The records of one partition must be submitted in offset order. While the pipe is paused, the record is dropped
        without an ack: this consumer or the new owner of the partition fetches it again.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: not self._accepting or self._has_capacity())
            if not self._accepting:
                return
            self.inflight += 1
            self._unacked += 1
        item = _Unacked(record, ack)
        queue = self._queues.setdefault(record.topic_partition, deque())
        queue.append(item)
        key = record.raw_key
        previous = None if key is None else self._last_of_key.get(key)
        task = asyncio.create_task(self._process(item, queue, previous))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if key is not None:
            self._last_of_key[key] = task
            task.add_done_callback(lambda done: self._forget(key, done))

    async def pause(self, timeout_s: float) -> bool:
        """Accept no more records and wait at most ``timeout_s`` seconds for those in flight.

        A record that takes longer is processed to its end but never acked: its partition may belong to another worker
        by then.

        Returns:
            Whether all records are acked.

        """
        async with self._changed:
            self._accepting = False
            self._changed.notify_all()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._changed.wait_for(lambda: self.inflight == 0)
            except TimeoutError:
                self._log.warning("records in flight will not be acked", extra={"fields": {"records": self.inflight}})
            all_acked = self._unacked == 0
            self._queues.clear()
            self._unacked = 0
            return all_acked

    async def resume(self) -> None:
        """Accept records again after :meth:`pause`."""
        async with self._changed:
            self._accepting = True
            self._changed.notify_all()

    def _has_capacity(self) -> bool:
        return self.inflight < self.max_inflight and self._unacked < self.max_inflight * _MAX_UNACKED

    async def _process(self, item: _Unacked, queue: deque[_Unacked], previous: asyncio.Task[None] | None) -> None:
        try:
            if previous is not None:
                await asyncio.wait({previous})
            with telemetry.record(self.group, item.record.headers()):
                outputs = await self._retry.until_available(lambda: self.handler(item.record))
                await self._retry.until_available(lambda: self.deliver(outputs))
            item.done = True
        except Exception as error:  # noqa: BLE001 - every other exception is a bug and ends the process
            where = {"topic": item.record.topic(), "partition": item.record.partition(), "offset": item.record.offset()}
            self._log.exception("handler failed; the record is not acked", extra={"fields": where})
            self.fatal(f"handler failed: {type(error).__name__}")
        finally:
            async with self._changed:
                self.inflight -= 1
                self._ack_finished(item.record.topic_partition, queue)
                self._changed.notify_all()

    def _ack_finished(self, topic_partition: tuple[str, int], queue: deque[_Unacked]) -> None:
        if self._queues.get(topic_partition) is not queue:
            return  # of an earlier assignment: the partition may belong to another worker
        while queue and queue[0].done:
            queue.popleft().ack()
            self._unacked -= 1
            metrics.RECORDS.labels(self.group).inc()

    def _forget(self, key: bytes, task: asyncio.Task[None]) -> None:
        if self._last_of_key.get(key) is task:
            del self._last_of_key[key]
