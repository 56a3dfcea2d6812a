"""The one batch loop that every event takes: poll, batch, prepare, apply, deliver, commit.

Guarantees:

- Offsets are committed after the effect and after the delivery of its outputs, never before. A crash anywhere repeats
  at most the batches in hand; processors are idempotent.
- Per partition, ``apply`` sees records in offset order, and outputs are produced in that order.
- The three steps overlap: while one batch is being delivered and committed, the next is applied and the one after it is
  fetched and prepared; at most one batch waits between two steps, so memory is bounded by about four batches.
- Backpressure: while ``apply`` is behind (a database away, say), the partitions are paused and the consumer keeps
  polling, so the group does not rebalance and nothing is fetched for nothing.
- Rebalance: partitions are given up when the batches in hand are committed, or after ``_REVOKE_S`` seconds; a batch
  that is not finished by then never commits offsets of a partition that is no longer ours.
- A dependency that is away is waited for with backoff and jitter, said in the log, on ``/ready`` and as a metric.
- When more than ``max_dead_share`` of the last ``dead_window`` records are dead, :class:`TooManyDead` stops the process
  before the dead letters of that batch are written: a wrong schema must not empty a topic into ``leads.dead``.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from opentelemetry.trace import Span

from infra import metrics, telemetry
from infra.kafka.consumer import consumer_config
from infra.kafka.dead_letters import DeadShare
from infra.kafka.processor import Effects, Prepared, Processor
from infra.kafka.producer import Deliverer
from infra.kafka.retry import Patience
from infra.runtime import Stop, log
from infra.settings import Settings

_IDLE_S = 0.25  # longest wait for a first record: bounds how late a stop is seen
_BLOCKED_S = 1.0  # a batch that waits this long for its predecessor pauses the partitions
_COMMIT_EVERY_S = 0.25  # how long a delivered batch waits to be committed together with the next ones
_COMMIT_AGAIN_S = 1.0
_REVOKE_S = 10.0  # partitions are held back at most this long at a rebalance

_Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class _Fetched:
    messages: list[Message] = field(default_factory=list)
    next_offsets: dict[_Key, int] = field(default_factory=dict)
    epochs: dict[_Key, int] = field(default_factory=dict)  # the assignments that gave us their partitions


@dataclass(slots=True)
class _Batch(Generic[Prepared]):
    prepared: Prepared
    count: int
    next_offsets: dict[_Key, int]
    epochs: dict[_Key, int]
    span: Span
    effects: Effects = field(default_factory=Effects)


async def run_batches(
    settings: Settings,
    *,
    group: str,
    topics: Sequence[str],
    processor: Processor[Any],
    stop: Stop,
    size: int,
    linger_ms: int,
    deliverer: Deliverer,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Run ``processor`` over ``topics`` as consumer group ``group`` until ``stop``.

    A batch holds at most ``size`` records and waits at most ``linger_ms`` for them. ``config`` adds to or replaces
    librdkafka's consumer settings.

    Raises:
        TooManyDead: see the module's guarantees.

    Whatever ``processor`` raises besides DependencyAway ends the loop with nothing of that batch committed.

    """
    loop: _Loop[Any] = _Loop(settings, group, processor, stop, size, linger_ms / 1000, deliverer, config or {})
    await loop.run(topics)


class _Loop(Generic[Prepared]):
    def __init__(
        self,
        settings: Settings,
        group: str,
        processor: Processor[Prepared],
        stop: Stop,
        size: int,
        linger_s: float,
        deliverer: Deliverer,
        config: Mapping[str, Any],
    ) -> None:
        self._group = group
        self._processor = processor
        self._stop = stop
        self._size = size
        self._linger_s = linger_s
        self._deliverer = deliverer
        self._log = log(group)
        self._patience = Patience(group, stop.status)
        self._dead = DeadShare(settings.dead_window, settings.max_dead_share)
        own = {"error_cb": self._on_error} | dict(config)
        self._consumer = Consumer(consumer_config(settings.kafka_bootstrap, group, settings.instance) | own)
        self._to_apply: asyncio.Queue[_Batch[Prepared] | None] = asyncio.Queue(1)
        self._to_deliver: asyncio.Queue[_Batch[Prepared] | None] = asyncio.Queue(1)
        # Shared with the rebalance callbacks, which run in the consumer's thread while it polls.
        self._lock = threading.Condition()
        self._in_hand = 0  # batches that are not delivered
        self._delivered: dict[_Key, tuple[int, int]] = {}  # what is to be committed: assignment and next offset
        self._delivered_records = 0
        self._commit_at = 0.0
        self._assignments = 0
        self._epochs: dict[_Key, int] = {}  # the partitions that are ours, each with the assignment that gave it
        self._carried: list[Message] = []

    async def run(self, topics: Sequence[str]) -> None:
        self._stop.status.ready = False
        self._consumer.subscribe(
            list(topics), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )
        try:
            async with asyncio.TaskGroup() as steps:
                steps.create_task(self._fetch())
                steps.create_task(self._apply())
                steps.create_task(self._deliver())
        except BaseExceptionGroup as group:
            raise _first(group) from None
        finally:
            with self._lock:
                self._in_hand = 0  # whatever is left is not finished, so the revocation at close must not wait for it
                self._lock.notify_all()
            await asyncio.to_thread(self._consumer.close)

    # -- fetch and prepare ------------------------------------------------------------------------------------------

    async def _fetch(self) -> None:
        while not self._stop.requested:
            fetched = await self._poll()
            if fetched.messages:
                with self._lock:
                    self._in_hand += 1
                await self._hand_over(fetched)
        await self._to_apply.put(None)

    async def _poll(self) -> _Fetched:
        """Return a batch: what is there at once, or what comes within the linger after its first record."""
        carried, self._carried = self._carried, []
        got = carried or await asyncio.to_thread(self._consume, 1, _IDLE_S)
        before = dict(self._epochs)  # only the consumer's calls change them, and none runs now
        more: list[Message] = []
        if got and len(got) < self._size:
            more = await asyncio.to_thread(self._consume, self._size - len(got), self._linger_s)
        epochs = dict(self._epochs)
        if epochs != before:
            # A rebalance took a partition away and may have given it back: then it begins anew, before what we had.
            got = [m for m in got if m.error() or before.get(_key(m)) == epochs.get(_key(m))]
        fetched = _Fetched()
        for message in (*got, *more):
            if self._is_record(message) and (key := _key(message)) in epochs:
                fetched.messages.append(message)
                fetched.epochs[key] = epochs[key]
                fetched.next_offsets[key] = message.offset() + 1
        return fetched

    def _consume(self, most: int, wait_s: float) -> list[Message]:
        if time.monotonic() >= self._commit_at:
            self._commit()
        found: list[Message] = self._consumer.consume(most, wait_s)
        return found

    def _is_record(self, message: Message) -> bool:
        error = message.error()
        if error is None:
            return True
        if error.fatal() or error.code() in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.UNKNOWN_TOPIC_OR_PART):
            raise KafkaException(error)
        self._log.warning("kafka", extra={"fields": {"error": error.name()}})
        return False

    async def _prepare(self, fetched: _Fetched, span: Span) -> _Batch[Prepared]:
        with self._step("prepare", span):
            prepared = await asyncio.to_thread(self._processor.prepare, fetched.messages)
        metrics.BATCH_RECORDS.labels(self._group).observe(len(fetched.messages))
        return _Batch(prepared, len(fetched.messages), fetched.next_offsets, fetched.epochs, span)

    async def _put(self, fetched: _Fetched) -> None:
        span = telemetry.begin_batch(self._group, fetched.messages)
        await self._to_apply.put(await self._patience.persist(lambda: self._prepare(fetched, span)))

    async def _hand_over(self, fetched: _Fetched) -> None:
        handed = asyncio.ensure_future(self._put(fetched))
        blocked = False
        try:
            await asyncio.wait({handed}, timeout=_BLOCKED_S)
            while not handed.done():
                await asyncio.to_thread(self._poll_paused)
                await asyncio.wait({handed}, timeout=_IDLE_S)
                blocked = True
            handed.result()
        finally:
            handed.cancel()
        if blocked:
            await asyncio.to_thread(lambda: self._consumer.resume(self._consumer.assignment()))

    def _poll_paused(self) -> None:
        # Pausing each time also catches partitions that were assigned meanwhile; what slipped through is kept.
        self._consumer.pause(self._consumer.assignment())
        got = self._consume(self._size, 0)  # first: a rebalance in it may drop what is carried
        self._carried += got

    @contextmanager
    def _step(self, name: str, batch: Span) -> Iterator[None]:
        with metrics.BATCH_SECONDS.labels(self._group, name).time(), telemetry.step(name, batch):
            yield

    # -- apply ------------------------------------------------------------------------------------------------------

    async def _apply(self) -> None:
        while (batch := await self._to_apply.get()) is not None:
            if self._still_ours(batch):
                with self._step("apply", batch.span):
                    batch.effects = await self._patience.persist(partial(self._processor.apply, batch.prepared))
                self._dead.saw(batch.count, batch.effects.dead)
                await self._to_deliver.put(batch)
            else:
                self._let_go(batch)
        await self._to_deliver.put(None)

    # -- deliver and commit -----------------------------------------------------------------------------------------

    async def _deliver(self) -> None:
        while (batch := await self._to_deliver.get()) is not None:
            with self._step("deliver", batch.span):
                outputs = batch.effects.to_deliver()
                await self._patience.persist(partial(self._deliverer.deliver, outputs))
            with self._lock:
                self._delivered |= {key: (epoch, batch.next_offsets[key]) for key, epoch in batch.epochs.items()}
                self._delivered_records += batch.count
            self._let_go(batch)

    def _commit(self) -> None:
        """Commit what is delivered, several batches at once: a commit costs the broker as much as a small batch.

        Only in the thread that polls: the client takes one call at a time, so that a commit from elsewhere would wait
        for the poll to end, and at a rebalance for the callback that waits for it.
        """
        with self._lock:
            due, self._delivered = self._delivered, {}
            records, self._delivered_records = self._delivered_records, 0
            offsets = [TopicPartition(*key, end) for key, (epoch, end) in due.items() if self._epochs.get(key) == epoch]
        self._commit_at = time.monotonic() + _COMMIT_EVERY_S
        if offsets:
            try:
                with metrics.BATCH_SECONDS.labels(self._group, "commit").time():
                    self._consumer.commit(offsets=offsets, asynchronous=False)
            except KafkaException as error:
                # Not fatal: done again soon, and if the partitions went, their new owner does the records again.
                self._log.warning("commit failed", extra={"fields": {"error": error.args[0].name()}})
                self._commit_at = time.monotonic() + _COMMIT_AGAIN_S
                with self._lock:
                    self._delivered = due | self._delivered
                    self._delivered_records += records
                return
        metrics.RECORDS.labels(self._group).inc(records)

    def _still_ours(self, batch: _Batch[Prepared]) -> bool:
        with self._lock:
            return any(self._epochs.get(key) == epoch for key, epoch in batch.epochs.items())

    def _let_go(self, batch: _Batch[Prepared]) -> None:
        batch.span.end()
        with self._lock:
            self._in_hand -= 1
            self._lock.notify_all()

    # -- rebalances (in the consumer's thread, while it polls) ---------------------------------------------------------

    def _on_assign(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        with self._lock:
            self._assignments += 1
            self._epochs |= {(p.topic, p.partition): self._assignments for p in partitions}
        self._stop.status.ready = True
        self._log.info("assigned", extra={"fields": {"partitions": _names(partitions)}})

    def _on_revoke(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        metrics.REBALANCES.labels(self._group, "revoked").inc(len(partitions))
        # Finish first: the new owner then starts where we stopped. Too long, and it does the rest again. What was
        # polled but not handed over yet (carried) is dropped, it is fetched again by whoever owns the partition.
        with self._lock:
            finished = self._lock.wait_for(lambda: self._in_hand <= 0, _REVOKE_S)
        self._commit()
        with self._lock:
            self._forget(partitions)
        self._log.info("revoked", extra={"fields": {"partitions": _names(partitions), "finished": finished}})

    def _on_lost(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        metrics.REBALANCES.labels(self._group, "lost").inc(len(partitions))
        with self._lock:
            self._forget(partitions)
        self._log.warning("lost", extra={"fields": {"partitions": _names(partitions)}})

    def _forget(self, partitions: list[TopicPartition]) -> None:
        gone = {(p.topic, p.partition) for p in partitions}
        for key in gone:
            self._epochs.pop(key, None)
        self._carried = [m for m in self._carried if (m.topic(), m.partition()) not in gone]

    def _on_error(self, error: KafkaError) -> None:
        self._log.warning("kafka", extra={"fields": {"error": error.name(), "detail": error.str()}})


def _key(message: Message) -> _Key:
    return message.topic(), message.partition()


def _names(partitions: Sequence[TopicPartition]) -> str:
    return " ".join(f"{p.topic}/{p.partition}" for p in partitions)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
