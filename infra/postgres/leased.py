"""The one engine for leased work: claims due rows of a table and processes them.

CRM sync, messages and open enrichment requests run on it. Its user supplies a table (:class:`LeasedTable`) and
``handle``:

    claim ─▶ handle ─▶ finish │ park │ release ─▶ outcomes

Guarantees:

- At most one worker holds the lease of a row. Work is cancelled after half of the lease. Rows that were claimed in
  advance and have waited for a quarter of the lease are released.
- A failed row is parked alone, with full-jitter backoff: until a time, or until it is released or changed. A pause of
  the destination stops only this engine, and does not increase the attempts of any row.
- Rows are claimed only if a call can start, the destination is not paused, and ``ready`` has returned.
- The results of ``handle`` are written before more rows are claimed; writing is retried while Postgres is unavailable.
  After a failed write no row is claimed until the write has succeeded, so no row is handled twice because of it.
- Each change of state has one outcome, published after the write. While the process runs, none is dropped: if Kafka is
  unavailable for long, work waits. If the task that publishes them fails, :meth:`LeasedWork.run` raises its error.
- If ``handle`` raises DependencyUnavailable, its rows are released and the pause begins, with a growing backoff. Any
  other exception ends :meth:`LeasedWork.run`.

Crash: claimed rows are due again when their lease ends, and only those are processed again. The outcome of a row that
was written last may be missing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic

from infra.clock import Clock, now_us, seconds_us
from infra.errors import DependencyUnavailable, first_error
from infra.kafka.outcome_records import OutcomeRecords
from infra.postgres.leased_outcomes import OutcomeQueue
from infra.postgres.leased_pause import Pause
from infra.postgres.leased_rows import Lease, Row
from infra.postgres.leased_settle import Handle, Settle
from infra.postgres.leased_table import LeasedTable
from infra.retry import Backoff, Retry, raise_if_cancelled
from infra.runtime import Status, Stop, log

_LISTEN_AGAIN_S = 1.0

Ready = Callable[[], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class WorkLimits:
    """Limits of concurrency and time.

    ``batch_max``: maximum rows of one call of ``handle``. ``in_flight``: maximum concurrent calls. ``ahead``: number of
    further calls whose rows are claimed in advance; 0: rows are claimed when a call can start, so batches are larger.
    ``poll_s``: interval of polling for rows without a notification. ``stop_s``: maximum duration of a stop, in seconds.
    """

    in_flight: int
    batch_max: int = 1
    ahead: int = 0
    poll_s: float = 0.5
    stop_s: float = 12.0


class LeasedWork(Generic[Row]):
    """Claims rows of ``table`` and processes them with ``handle``.

    ``wake``: set it after inserting rows in this process. ``backoff``: of parked rows. ``ready``: returns when a call
    may be made, for example by a rate limit. ``status`` is shown at ``/ready``.
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
            stage,
            table,
            handle,
            backoff=backoff,
            pause=pause,
            outcomes=outcomes,
            records=records,
            retry=self._retry,
            clock=clock,
        )
        self._claimed: asyncio.Queue[Lease[Row] | None] = asyncio.Queue()
        self._held = 0  # leases that are claimed and not finished

    async def run(self, stop: Stop) -> None:
        """Work until ``stop``; then finish the calls that run and release the other rows, within ``stop_s`` seconds."""
        try:
            async with asyncio.TaskGroup() as group:
                beside = [
                    group.create_task(self._outcomes.publish(self._retry)),
                    group.create_task(self._listen()),
                ]
                workers = [group.create_task(self._work()) for _ in range(self._limits.in_flight)]
                claims = group.create_task(self._claim_until(stop))
                await stop.wait()
                self._stopping.set()
                self._wake.set()
                try:
                    async with asyncio.timeout(self._limits.stop_s):
                        await asyncio.wait({claims})
                        await self._end(workers)
                except TimeoutError:
                    self._log.error("stopped before all work was finished", extra={"fields": {"leases": self._held}})
                for task in (*beside, claims, *workers):
                    task.cancel()
        except BaseExceptionGroup as errors:
            failed = first_error(errors)
        else:
            return
        raise failed  # outside the handler: the group must not become its context

    async def once(self) -> int:
        """Claim due rows, process them, publish the outcomes; return the number of rows (0 while paused)."""
        leases = await self._claim(self._limits.in_flight)
        await asyncio.gather(*(self._settle(lease) for lease in leases))
        await self._outcomes.flush(self._retry)
        return sum(len(lease.rows) for lease in leases)

    # -- claiming ----------------------------------------------------------------------------------------------------

    async def _claim_until(self, stop: Stop) -> None:
        while not stop.requested:
            await self._look(stop)

    async def _look(self, stop: Stop) -> None:
        """Claim rows for the calls that can start, or wait until there may be rows to claim."""
        self._wake.clear()
        if self._pause.active:  # new rows do not end a pause
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
        """Return the number of calls of ``handle`` to claim rows for."""
        if not self._limits.ahead:
            return 1 if self._held < self._limits.in_flight else 0
        few = self._held <= 2 * self._limits.in_flight  # claim only then, so that each claim is large
        return self._limits.in_flight + self._limits.ahead - self._held if few else 0

    async def _claim(self, calls: int) -> list[Lease[Row]]:
        if not calls or self._pause.active or self._settle.overdue_writes:
            return []
        size = self._limits.batch_max

        async def claim() -> Lease[Row]:
            if self._stopping.is_set():
                return Lease(0, [])
            if self._settle.overdue_writes:  # since the last try; what is to be written may be claimable again
                raise DependencyUnavailable("Postgres", "results are still to be written")
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
            try:
                await self._table.listen(self._wake)
            except DependencyUnavailable as error:  # reported by the claims, which work without it
                raise_if_cancelled(error)
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
        """Release rows that were claimed and are not being processed."""
        while not self._claimed.empty():
            if (lease := self._claimed.get_nowait()) is not None:
                await self._release(lease)

    # -- ending ------------------------------------------------------------------------------------------------------

    async def _end(self, workers: Sequence[asyncio.Task[None]]) -> None:
        await self._release_claimed()
        for _ in workers:
            self._claimed.put_nowait(None)
        await asyncio.wait(workers)
        await self._outcomes.empty()

    async def _wait_for_stop(self) -> None:
        await self._stopping.wait()

    async def _sleep(self, seconds: float) -> None:
        """Wait for ``seconds``. A stop ends the waits that began before it."""
        if self._stopping.is_set():
            await asyncio.sleep(seconds)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
