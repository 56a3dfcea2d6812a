"""The engine of leased work: it claims due rows of a table, has them handled and writes the result of each.

CRM sync and messages run on it. Its user supplies a table (:class:`LeasedTable`) and ``handle``:

    claim ─▶ handle ─▶ finish │ park │ release ─▶ outcomes

Guarantees:

- A row is leased to at most one worker. Work that exceeds its deadline is cancelled (see :class:`Lease`). Rows that
  were claimed in advance and have waited for a quarter of the lease are released instead of handled.
- A row that fails is parked, without an effect on other rows: until a time, with full-jitter backoff, or until it is
  released or changed. The pause of a destination stops only this engine and is no attempt of any row.
- Rows are claimed only when a worker can take them, the destination is not paused, and ``ready`` has returned.
- A result that ``handle`` returned is always written: while Postgres is unavailable the write is retried, and the
  worker handles no other rows.
- Each change of state emits one outcome, after its write. Outcomes are not dropped while the process lives: while Kafka
  is unavailable, work waits. If publishing fails permanently, :meth:`LeasedWork.run` raises.
- If ``handle`` raises DependencyUnavailable, its rows are released. Any other error ends :meth:`LeasedWork.run`.

Crash: claimed rows are due again when their lease ends; only those can be handled twice. The outcome of a row that was
just written may be missing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic

from infra.clock import Clock, now_us, seconds_us
from infra.kafka.outcome_records import OutcomeRecords
from infra.postgres.leased_outcomes import OutcomeQueue
from infra.postgres.leased_pause import Pause
from infra.postgres.leased_rows import Lease, Row
from infra.postgres.leased_settle import Handle, Settle
from infra.postgres.leased_table import LeasedTable
from infra.retry import Backoff, Retry
from infra.runtime import Status, Stop, log

_LISTEN_AGAIN_S = 1.0

Ready = Callable[[], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class WorkLimits:
    """How much work runs at once, and how often the table is polled.

    ``batch_max``: maximum number of rows in one call of ``handle``. ``in_flight``: maximum number of concurrent calls.
    ``ahead``: number of further calls whose rows are claimed in advance, so that one claim serves many calls; with 0
    rows are claimed only for a free call, so that they gather into larger batches. ``poll_s``: seconds between two
    polls for rows that were not announced. ``stop_s``: timeout of a stop, in seconds.
    """

    in_flight: int
    batch_max: int = 1
    ahead: int = 0
    poll_s: float = 0.5
    stop_s: float = 12.0


class LeasedWork(Generic[Row]):
    """Claims the rows of ``table`` and passes them to ``handle``, which returns a result for each.

    ``wake``: set it after inserting rows in this process. ``backoff``: of parked rows. ``ready``: returns when a call
    may start (a rate limit). ``status``: shown at ``/ready``.
    """

    def __init__(
        self,
        stage: str,
        table: LeasedTable[Row],
        handle: Handle[Row],
        *,
        limits: WorkLimits,
        backoff: Backoff,
        pause: Pause,
        outcomes: OutcomeQueue,
        records: OutcomeRecords,
        wake: asyncio.Event,
        ready: Ready | None = None,
        status: Status | None = None,
        clock: Clock = now_us,
    ) -> None:
        self._table = table
        self._limits = limits
        self._pause = pause
        self._outcomes = outcomes
        self._wake = wake
        self._ready = ready
        self._clock = clock
        self._log = log(stage)
        self._stopping = asyncio.Event()
        self._retry = Retry(stage, status or Status(), self._sleep)
        self._settle = Settle(
            stage, table, handle, backoff=backoff, outcomes=outcomes, records=records, retry=self._retry, clock=clock
        )
        self._claimed: asyncio.Queue[Lease[Row] | None] = asyncio.Queue()
        self._held = 0  # leases that are claimed and not ended, started or not

    async def run(self, stop: Stop) -> None:
        """Work until ``stop``; then finish the work in progress and release the other rows, within ``stop_s``."""
        try:
            async with asyncio.TaskGroup() as group:
                beside = [
                    group.create_task(self._outcomes.publish(self._retry)),
                    group.create_task(self._listen()),
                    group.create_task(self._wake_on(stop)),
                ]
                workers = [group.create_task(self._work()) for _ in range(self._limits.in_flight)]
                while not stop.requested:
                    await self._look(stop)
                try:
                    async with asyncio.timeout(self._limits.stop_s):
                        await self._end(workers)
                except TimeoutError:
                    self._log.error("stopped before all work was finished", extra={"fields": {"leases": self._held}})
                for task in (*beside, *workers):
                    task.cancel()
        except BaseExceptionGroup as errors:
            failed = first_error(errors)
        else:
            return
        raise failed  # outside the handler: the group must not become its context

    async def once(self) -> int:
        """Claim rows once, handle them and publish their outcomes; return the number of rows (0 while paused)."""
        leases = await self._claim(self._limits.in_flight)
        await asyncio.gather(*(self._settle(lease) for lease in leases))
        await self._outcomes.flush(self._retry)
        return sum(len(lease.rows) for lease in leases)

    # -- claiming ----------------------------------------------------------------------------------------------------

    async def _look(self, stop: Stop) -> None:
        """Claim rows for the free calls, or wait until there may be rows to claim."""
        self._wake.clear()
        if self._pause.active:  # new work does not end a pause
            await self._release_claimed()
            await stop.wait(min(self._limits.poll_s, max(0.0, (self._pause.until - self._clock()) / 1e6)))
            return
        room = self._room()
        if room and self._ready is not None:
            await self._until(self._ready())
        leases = await self._claim(room)
        self._held += len(leases)
        for lease in leases:
            self._claimed.put_nowait(lease)
        if not leases:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._limits.poll_s):
                    await self._wake.wait()

    def _room(self) -> int:
        """Return the number of calls of ``handle`` to claim rows for now."""
        if not self._limits.ahead:
            return 1 if self._held < self._limits.in_flight else 0
        few = self._held <= 2 * self._limits.in_flight  # claim only then, so that each claim is large
        return self._limits.in_flight + self._limits.ahead - self._held if few else 0

    async def _claim(self, calls: int) -> list[Lease[Row]]:
        if not calls or self._pause.active:
            return []
        size = self._limits.batch_max

        async def claim() -> Lease[Row]:
            if self._stopping.is_set():
                return Lease(0, [])
            return await self._table.claim(size * calls)

        lease = await self._retry.until_available(claim)
        return [Lease(lease.until, lease.rows[start : start + size]) for start in range(0, len(lease.rows), size)]

    async def _until(self, ready: Coroutine[Any, Any, None]) -> None:
        """Wait until ``ready`` returns or a stop begins."""
        tasks = [asyncio.ensure_future(ready), asyncio.ensure_future(self._wait_for_stop())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].done():
                await tasks[0]
        finally:
            for task in tasks:
                task.cancel()

    async def _listen(self) -> None:
        while True:
            await self._retry.until_available(lambda: self._table.listen(self._wake))
            await self._sleep(_LISTEN_AGAIN_S)

    # -- working -----------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while (lease := await self._claimed.get()) is not None:
            late = self._clock() > lease.until - seconds_us(self._table.lease_s * 3 / 4)
            if late or self._pause.active or self._stopping.is_set():
                await self._release(lease)
            else:
                await self._settle(lease)
                self._held -= 1
            self._wake.set()  # a call is free, and more rows may be due

    async def _release(self, lease: Lease[Row]) -> None:
        await self._retry.until_available(lambda: self._table.release(lease, lease.rows))
        self._held -= 1

    async def _release_claimed(self) -> None:
        """Release the rows that were claimed and not started."""
        while not self._claimed.empty():
            if (lease := self._claimed.get_nowait()) is not None:
                await self._release(lease)

    # -- ending ------------------------------------------------------------------------------------------------------

    async def _end(self, workers: Sequence[asyncio.Task[None]]) -> None:
        self._stopping.set()
        await self._release_claimed()
        for _ in workers:
            self._claimed.put_nowait(None)
        await asyncio.wait(workers)
        await self._outcomes.empty()

    async def _wake_on(self, stop: Stop) -> None:
        await stop.wait()
        self._stopping.set()
        self._wake.set()

    async def _wait_for_stop(self) -> None:
        await self._stopping.wait()

    async def _sleep(self, seconds: float) -> None:
        """Wait. A stop ends waits that began before it; waits that begin after it last the full time."""
        if self._stopping.is_set():
            await asyncio.sleep(seconds)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()


def first_error(errors: BaseException) -> BaseException:
    """Return the innermost first error of an exception group: the one that cancelled the other tasks."""
    while isinstance(errors, BaseExceptionGroup):
        errors = errors.exceptions[0]
    return errors
