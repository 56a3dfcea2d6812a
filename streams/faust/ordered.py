"""In-order acks for Faust: many records in flight, one key's in order, only the finished prefix acked.

Guarantees:

- A record is acked after its handler has returned *and* the broker has every output of it (``acks=all``), and only when
  every earlier record of its partition is acked. A crash anywhere repeats what was not acked, nothing else.
- Records of one key are handled one after the other in their order; of different keys side by side, at most
  ``max_inflight`` at a time. ``submit`` waits for room: that is the back-pressure.
- DependencyAway is waited out in place, with backoff and jitter. Anything else that a handler raises stops the process
  (exit code 70) with the record not acked: a bug is never acked away.
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
from typing import TypeVar

from infra import metrics, telemetry
from infra.kafka.producer import Output
from infra.kafka.retry import Retry
from infra.runtime import Status, log

EX_SOFTWARE = 70
_HELD = 16  # finished records that wait for an earlier one: at most this many times max_inflight


@dataclass(frozen=True, slots=True)
class Record:
    """A record as Faust gave it; the methods are those of ``confluent_kafka.Message``, so stages take either."""

    at: tuple[str, int]
    number: int
    raw_key: bytes | None
    raw_value: bytes | None
    raw_headers: Sequence[tuple[str, bytes]] = ()

    def topic(self) -> str:
        """Return the topic's name."""
        return self.at[0]

    def partition(self) -> int:
        """Return the partition's number."""
        return self.at[1]

    def offset(self) -> int:
        """Return the offset."""
        return self.number

    def key(self) -> bytes | None:
        """Return the key's bytes."""
        return self.raw_key

    def value(self) -> bytes | None:
        """Return the value's bytes."""
        return self.raw_value

    def headers(self) -> Sequence[tuple[str, bytes]]:
        """Return the headers in their order."""
        return self.raw_headers


Handler = Callable[[Record], Awaitable[Sequence[Output]]]
Deliver = Callable[[Sequence[Output]], Awaitable[None]]
Ack = Callable[[], object]
Result = TypeVar("Result")


def die(reason: str) -> None:
    """Say why, show what every thread is doing, and end this process at once; nothing in hand is acked."""
    log("faust").critical("stopping at once", extra={"fields": {"reason": reason}})
    for handler in logging.getLogger().handlers:
        handler.flush()
    faulthandler.dump_traceback(file=sys.__stderr__ or sys.stderr, all_threads=True)
    os._exit(EX_SOFTWARE)


@dataclass(slots=True, eq=False)
class _InHand:
    record: Record
    ack: Ack
    done: bool = False


@dataclass(eq=False)
class OrderedPipe:
    """Runs ``handler`` over submitted records and delivers what it returns; see the module's guarantees.

    ``fatal`` is called with a reason when a handler fails; it does not return (in tests it may, the record then stays
    unacked). ``sleep`` is how a lost dependency is waited for.
    """

    group: str
    handler: Handler
    deliver: Deliver
    max_inflight: int = 256
    status: Status = field(default_factory=Status)
    fatal: Callable[[str], None] = die
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    inflight: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._log = log(self.group)
        self._retry = Retry(self.group, self.status, self.sleep)
        self._taking = True
        self._held = 0  # taken and not acked
        self._lines: dict[tuple[str, int], deque[_InHand]] = {}
        self._last_of_key: dict[bytes, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself only holds weak references
        self._changed = asyncio.Condition()

    @property
    def away(self) -> set[str]:
        """The dependencies that are waited for now."""
        return self._retry.unavailable

    async def submit(self, record: Record, ack: Ack) -> None:
        """Take ``record`` when there is room; records of one partition are given in offset order.

        While the pipe is paused (a rebalance, the end) the record is let go unacked: it is fetched again, by us or by
        the partition's new owner.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: not self._taking or self._has_room())
            if not self._taking:
                return
            self.inflight += 1
            self._held += 1
        item = _InHand(record, ack)
        line = self._lines.setdefault(record.at, deque())
        line.append(item)
        key = record.raw_key
        previous = None if key is None else self._last_of_key.get(key)
        task = asyncio.create_task(self._work(item, line, previous))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if key is not None:
            self._last_of_key[key] = task
            task.add_done_callback(lambda done: self._forget(key, done))

    async def pause(self, timeout_s: float) -> bool:
        """Take nothing more, wait at most ``timeout_s`` for what is in flight; return whether all of it is acked.

        What is in flight for longer goes on, but is never acked: its partition may be another worker's by then.
        """
        async with self._changed:
            self._taking = False
            self._changed.notify_all()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._changed.wait_for(lambda: self.inflight == 0)
            except TimeoutError:
                self._log.warning("left unfinished", extra={"fields": {"records": self.inflight}})
            finished = self._held == 0
            self._lines.clear()
            self._held = 0
            return finished

    async def resume(self) -> None:
        """Take records again, after :meth:`pause`."""
        async with self._changed:
            self._taking = True
            self._changed.notify_all()

    def _has_room(self) -> bool:
        return self.inflight < self.max_inflight and self._held < self.max_inflight * _HELD

    async def _work(self, item: _InHand, line: deque[_InHand], previous: asyncio.Task[None] | None) -> None:
        try:
            if previous is not None:
                await asyncio.wait({previous})
            with telemetry.record(self.group, item.record.headers()):
                outputs = await self._retry.until_available(lambda: self.handler(item.record))
                await self._retry.until_available(lambda: self.deliver(outputs))
            item.done = True
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends the process
            where = {"topic": item.record.topic(), "partition": item.record.partition(), "offset": item.record.offset()}
            self._log.exception("handler failed; the record is not acked", extra={"fields": where})
            self.fatal(f"handler failed: {type(error).__name__}")
        finally:
            async with self._changed:
                self.inflight -= 1
                self._ack_prefix(item.record.at, line)
                self._changed.notify_all()

    def _ack_prefix(self, at: tuple[str, int], line: deque[_InHand]) -> None:
        if self._lines.get(at) is not line:
            return  # of an earlier assignment: not ours to ack any more
        while line and line[0].done:
            line.popleft().ack()
            self._held -= 1
            metrics.RECORDS.labels(self.group).inc()

    def _forget(self, key: bytes, task: asyncio.Task[None]) -> None:
        if self._last_of_key.get(key) is task:
            del self._last_of_key[key]
