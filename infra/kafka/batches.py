"""The batch loop of intake and the sinks: poll, prepare, apply, deliver, commit.

Guarantees:

- Offsets are committed after the effects of a batch and the delivery of its outputs, never before. After a crash at
  most the batches in flight are reprocessed; processors are idempotent.
- Per partition, ``apply`` receives records in offset order, and outputs are produced in that order.
- The steps overlap: while one batch is delivered, the next is applied and the one after it is fetched and prepared. At
  most one batch waits between two steps, so at most five batches are in memory.
- Backpressure: while ``apply`` is slow (such as while Postgres is unavailable), the partitions are paused and the
  consumer keeps polling. So the group does not rebalance, and nothing more is fetched.
- Rebalance: see :mod:`infra.kafka.assignment`. A batch is dropped before ``apply`` if none of its partitions is still
  assigned. Offsets are committed only for partitions that are still assigned.
- An unavailable dependency is retried with backoff and jitter; the log, ``/ready`` and a metric show it.
- When more than ``max_dead_share`` of the last ``dead_window`` records are dead, :class:`TooManyDead` stops the process
  before the dead letters of that batch are written: a wrong schema must not empty a topic into ``leads.dead``.
- A consumer that failed permanently ends the loop and with it the process, which is restarted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic

from opentelemetry.trace import Span

from infra import metrics, telemetry
from infra.errors import first_error
from infra.kafka import client
from infra.kafka.assignment import IDLE_S, Assignment, Fetched
from infra.kafka.dead_letters import DeadShare
from infra.kafka.processor import Batch, Effects, Processor
from infra.kafka.producer import Deliverer
from infra.retry import Retry
from infra.runtime import Stop
from infra.settings import Settings

_BLOCKED_S = 1.0  # a batch that waits longer than this for the previous one pauses the partitions


@dataclass(slots=True)
class _InFlight(Generic[Batch]):
    """A batch between its fetch and the commit of its offsets."""

    prepared: Batch
    fetched: Fetched
    span: Span
    effects: Effects = field(default_factory=Effects)

    @property
    def count(self) -> int:
        return len(self.fetched.messages)


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
    """Run ``processor`` over ``topics`` in the consumer group ``group`` until a stop is requested.

    A batch holds at most ``size`` records and waits at most ``linger_ms`` milliseconds to fill. ``config`` adds to or
    replaces librdkafka's consumer settings.

    Raises:
        TooManyDead: see the module's guarantees.
        ClientFailed: the consumer failed permanently.
        Exception: any other error of ``processor`` than DependencyUnavailable; that batch is not committed.

    """
    consumer = client.member(settings, group, instance=settings.instance, config=config, on_fatal=stop.fail)
    assignment = Assignment(consumer, group, stop.status)
    dead = DeadShare(settings.dead_window, settings.max_dead_share)
    loop: _Loop[Any] = _Loop(group, processor, assignment, deliverer, stop, size, linger_ms / 1000, dead)
    await loop.run(topics)


class _Loop(Generic[Batch]):
    def __init__(
        self,
        group: str,
        processor: Processor[Batch],
        assignment: Assignment,
        deliverer: Deliverer,
        stop: Stop,
        size: int,
        linger_s: float,
        dead: DeadShare,
    ) -> None:
        self._group = group
        self._processor = processor
        self._assignment = assignment
        self._deliverer = deliverer
        self._stop = stop
        self._size = size
        self._linger_s = linger_s
        self._dead = dead
        self._retry = Retry(group, stop.status)
        self._to_apply: asyncio.Queue[_InFlight[Batch] | None] = asyncio.Queue(1)
        self._to_deliver: asyncio.Queue[_InFlight[Batch] | None] = asyncio.Queue(1)

    async def run(self, topics: Sequence[str]) -> None:
        self._stop.status.ready = False
        self._assignment.subscribe(topics)
        try:
            async with asyncio.TaskGroup() as steps:
                steps.create_task(self._fetch())
                steps.create_task(self._apply())
                steps.create_task(self._deliver())
        except BaseExceptionGroup as errors:
            failed = first_error(errors)
        else:
            return
        finally:
            await self._assignment.close()
        raise failed

    @contextmanager
    def _step(self, name: str, batch: Span) -> Iterator[None]:
        with metrics.BATCH_SECONDS.labels(self._group, name).time(), telemetry.step(name, batch):
            yield

    # -- fetch and prepare ------------------------------------------------------------------------------------------

    async def _fetch(self) -> None:
        assignment = self._assignment
        while not self._stop.requested:
            fetched = await assignment.call(partial(assignment.poll, self._size, self._linger_s))
            if fetched.messages:
                assignment.begin()
                await self._pass_on(fetched)
        await self._to_apply.put(None)

    async def _pass_on(self, fetched: Fetched) -> None:
        """Prepare a batch and queue it for ``apply``; while the queue is full, poll with the partitions paused."""
        assignment, blocked = self._assignment, False
        queued = asyncio.ensure_future(self._queue(fetched))
        try:
            await asyncio.wait({queued}, timeout=_BLOCKED_S)
            while not queued.done():
                await assignment.call(partial(assignment.poll_paused, self._size))
                await asyncio.wait({queued}, timeout=IDLE_S)
                blocked = True
            queued.result()
        finally:
            queued.cancel()
        if blocked:
            await assignment.call(assignment.resume)

    async def _queue(self, fetched: Fetched) -> None:
        span = telemetry.begin_batch(self._group, fetched.messages)
        prepared = await self._retry.until_available(lambda: self._prepare(fetched, span))
        metrics.BATCH_RECORDS.labels(self._group).observe(len(fetched.messages))
        await self._to_apply.put(_InFlight(prepared, fetched, span))

    async def _prepare(self, fetched: Fetched, span: Span) -> Batch:
        with self._step("prepare", span):
            return await asyncio.to_thread(self._processor.prepare, fetched.messages)

    # -- apply ------------------------------------------------------------------------------------------------------

    async def _apply(self) -> None:
        while (batch := await self._to_apply.get()) is not None:
            if self._assignment.owns_any(batch.fetched.assignments):
                with self._step("apply", batch.span):
                    batch.effects = await self._retry.until_available(partial(self._processor.apply, batch.prepared))
                self._dead.add(batch.count, batch.effects.dead)
                await self._to_deliver.put(batch)
            else:
                self._end(batch)
        await self._to_deliver.put(None)

    # -- deliver and commit -----------------------------------------------------------------------------------------

    async def _deliver(self) -> None:
        while (batch := await self._to_deliver.get()) is not None:
            with self._step("deliver", batch.span):
                outputs = batch.effects.to_deliver()
                await self._retry.until_available(partial(self._deliverer.deliver, outputs))
            self._assignment.delivered(batch.fetched.next_offsets, batch.fetched.assignments, batch.count)
            self._end(batch)

    def _end(self, batch: _InFlight[Batch]) -> None:
        batch.span.end()
        self._assignment.end()
