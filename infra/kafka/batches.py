"""The batch loop of intake and the sinks: poll, prepare, apply, deliver, commit.

Guarantees:

- Offsets are committed after the effects of a batch and the delivery of its outputs, never before. After a crash at
  most the batches in flight are reprocessed; processors are idempotent.
- Per partition, ``apply`` receives records in offset order, and outputs are produced in that order.
- The steps overlap: while one batch is delivered, the next is applied and the one after it is fetched and prepared. At
  most one batch, or one part of a batch's outputs, waits between two steps. So at most five batches are in memory, and
  a batch has at most ``max_bytes`` bytes (or one record).
- Backpressure: while ``apply`` is slow (such as while Postgres is unavailable), the partitions are paused and the
  consumer keeps polling. So the group does not rebalance, and nothing more is fetched.
- Rebalance: see :mod:`infra.kafka.assignment`. A batch is dropped before ``apply`` if none of its partitions is still
  assigned. Offsets are committed only for partitions that are still assigned.
- An unavailable dependency is retried with backoff and jitter; the log, ``/ready`` and a metric show it.
- A consumer that failed permanently ends the loop and with it the process, which is restarted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic

from opentelemetry.trace import Span

from infra import metrics, telemetry
from infra.errors import first_error
from infra.kafka import client
from infra.kafka.assignment import IDLE_S, Assignment, Fetched
from infra.kafka.batch_limits import BatchLimits
from infra.kafka.processor import Batch, Outputs, Processor
from infra.kafka.producer import Deliverer
from infra.retry import Retry
from infra.runtime import Stop
from infra.settings import Settings

_BLOCKED_S = 1.0  # a batch that waits longer than this for the previous one pauses the partitions


@dataclass(frozen=True, slots=True)
class _InFlight(Generic[Batch]):
    """A batch between its fetch and the commit of its offsets."""

    prepared: Batch
    fetched: Fetched
    span: Span

    @property
    def count(self) -> int:
        return len(self.fetched.messages)


@dataclass(frozen=True, slots=True)
class _Part(Generic[Batch]):
    """The outputs of a part of a batch; None: the end of the batch."""

    batch: _InFlight[Batch]
    outputs: Outputs | None
    applied: bool = False  # all of the batch's effects are written


async def run_batches(
    settings: Settings,
    *,
    group: str,
    topics: Sequence[str],
    processor: Processor[Any],
    stop: Stop,
    limits: BatchLimits,
    deliverer: Deliverer,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Run ``processor`` over ``topics`` in the consumer group ``group`` until a stop is requested.

    A topic that begins with ``^`` is a pattern. ``config`` adds to or replaces librdkafka's consumer settings.

    Raises:
        ClientFailed: the consumer failed permanently.
        Exception: any other error of ``processor`` than DependencyUnavailable; that batch is not committed.

    """
    own = {"queued.max.messages.kbytes": max(limits.max_bytes // 1024, 1)} | dict(config or {})
    consumer = client.member(settings, group, instance=settings.instance, config=own, on_fatal=stop.fail)
    assignment = Assignment(consumer, group, stop.status)
    loop: _Loop[Any] = _Loop(group, processor, assignment, deliverer, stop, limits)
    await loop.run(topics)


class _Loop(Generic[Batch]):
    def __init__(
        self,
        group: str,
        processor: Processor[Batch],
        assignment: Assignment,
        deliverer: Deliverer,
        stop: Stop,
        limits: BatchLimits,
    ) -> None:
        self._group = group
        self._processor = processor
        self._assignment = assignment
        self._deliverer = deliverer
        self._stop = stop
        self._limits = limits
        self._retry = Retry(group, stop.status)
        self._to_apply: asyncio.Queue[_InFlight[Batch] | None] = asyncio.Queue(1)
        self._to_deliver: asyncio.Queue[_Part[Batch] | None] = asyncio.Queue(1)

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
            fetched = await assignment.call(partial(assignment.poll, self._limits))
            if fetched.next_offsets:
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
                await assignment.call(partial(assignment.poll_paused, self._limits))
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
        if fetched.messages:
            metrics.BATCH_RECORDS.labels(self._group).observe(len(fetched.messages))
        await self._to_apply.put(_InFlight(prepared, fetched, span))

    async def _prepare(self, fetched: Fetched, span: Span) -> Batch:
        with self._step("prepare", span):
            return await asyncio.to_thread(self._processor.prepare, fetched.messages)

    # -- apply ------------------------------------------------------------------------------------------------------

    async def _apply(self) -> None:
        while (batch := await self._to_apply.get()) is not None:
            owned = self._assignment.owns_any(batch.fetched.assignments)
            if owned:
                await self._retry.until_available(partial(self._apply_parts, batch))
            await self._to_deliver.put(_Part(batch, None, applied=owned))
        await self._to_deliver.put(None)

    async def _apply_parts(self, batch: _InFlight[Batch]) -> None:
        async with aclosing(self._processor.apply(batch.prepared)) as parts:
            while True:
                with self._step("apply", batch.span):
                    outputs = await anext(parts, None)
                if outputs is None:
                    return
                await self._to_deliver.put(_Part(batch, outputs))

    # -- deliver and commit -----------------------------------------------------------------------------------------

    async def _deliver(self) -> None:
        while (part := await self._to_deliver.get()) is not None:
            if part.outputs is not None:
                with self._step("deliver", part.batch.span):
                    outputs = part.outputs() if callable(part.outputs) else part.outputs
                    await self._retry.until_available(partial(self._deliverer.deliver, outputs))
                continue
            if part.applied:
                fetched = part.batch.fetched
                self._assignment.delivered(fetched.next_offsets, fetched.assignments, part.batch.count)
            self._end(part.batch)

    def _end(self, batch: _InFlight[Batch]) -> None:
        batch.span.end()
        self._assignment.end()
