"""The queue of outcomes between leased work and Kafka: bounded, ordered, never dropped while the process runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from infra.kafka.producer import Output
from infra.retry import Retry

_LIMIT = 1000

Emit = Callable[[Sequence[Output]], Awaitable[None]]


class OutcomeQueue:
    """Holds up to 1,000 outcomes until ``emit`` has delivered them.

    Guarantees: an outcome leaves the queue only when ``emit`` has returned: at-least-once while the process lives.
    While Kafka is unavailable the queue fills up; then :meth:`put` waits, and with it the work.
    """

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._waiting: asyncio.Queue[Output] = asyncio.Queue(_LIMIT)

    async def put(self, outputs: Sequence[Output]) -> None:
        """Add ``outputs``; wait while the queue is full."""
        for output in outputs:
            await self._waiting.put(output)

    async def publish(self, retry: Retry) -> None:
        """Deliver until cancelled, all waiting outcomes at once. Retries DependencyUnavailable, raises other errors."""
        while True:
            await self._deliver([await self._waiting.get()], retry)

    async def flush(self, retry: Retry) -> None:
        """Deliver all queued outcomes. For callers that do not run :meth:`publish` in a task."""
        while not self._waiting.empty():
            await self._deliver([self._waiting.get_nowait()], retry)

    async def empty(self) -> None:
        """Wait until all outcomes are delivered."""
        await self._waiting.join()

    async def _deliver(self, outputs: list[Output], retry: Retry) -> None:
        while not self._waiting.empty():
            outputs.append(self._waiting.get_nowait())
        await retry.until_available(lambda: self._emit(outputs))
        for _ in outputs:
            self._waiting.task_done()
