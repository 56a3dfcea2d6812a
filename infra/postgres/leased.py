"""The one engine of leased work: CRM sync, messages, and whatever else is a row that has to be handled some time.

A user supplies a table (:class:`LeasedTable`) and ``handle``; the engine does the rest:

    claim ─▶ handle ─▶ finish │ park │ release ─▶ outcomes

Guarantees:

- A row is handled by at most one worker at a time: leased, and calls that have not ended half of the lease after the
  claim are given up, so the clocks of workers may differ by the other half. Work that was claimed ahead and has waited
  for a quarter of the lease is released instead of begun.
- A row that fails is parked by its key, alone, with full-jitter backoff, until a time, or until it is released or
  changed. A destination that is paused stops this engine and nothing else, and costs no row an attempt.
- Rows are claimed only when there is room for them, when the destination is not paused, and when ``ready`` returns.
- What ``handle`` returns is written, however long Postgres is unavailable, before more work is claimed in its place;
  once such a write has failed nothing is claimed until it has succeeded, so that no row is handled again meanwhile.
- One outcome for each change of state, after its write, never dropped while the process lives: when Kafka is
  unavailable for long, work waits. If the publisher of outcomes dies, :meth:`LeasedWork.run` raises.
- When ``handle`` raises DependencyUnavailable its rows are released, and the pause begins, with its growing backoff.
  Whatever else it raises ends :meth:`LeasedWork.run`.

Crash: rows that were claimed are due again when their lease ends; at most those are handled once more. An outcome whose
row was written may be missing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic

from infra.clock import Clock, now_us, seconds_us
from infra.errors import DependencyUnavailable
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
    """How much work at once, and how often to look for more.

    ``batch_max``: rows in one call of ``handle``. ``in_flight``: calls at once. ``ahead``: calls whose rows are claimed
    beside those under way, so that one claim serves many; 0 claims late instead, so that rows gather in a batch.
    ``poll_s``: how often to look for work that nobody announced. ``stop_s``: the longest time that ending may take.
    """

    in_flight: int
    batch_max: int = 1
    ahead: int = 0
    poll_s: float = 0.5
    stop_s: float = 12.0


class LeasedWork(Generic[Row]):
    """Claims the rows of ``table`` and has ``handle`` settle each of them.

    ``wake`` is set by whoever inserts rows in this process. ``backoff`` is that of a parked row. ``ready`` returns when
    a call may be made, such as by a rate limit. ``status`` is shown at ``/ready``.
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
        self._held = 0  # leases claimed and not ended, begun or not

    async def run(self, stop: Stop) -> None:
        """Work until ``stop``; then claim nothing, finish what has begun and release the rest, within ``stop_s``."""
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
        raise failed  # out here, so that its context is not the group that holds it

    async def once(self) -> int:
        """Claim what may be handled at once, see it through and publish; return how many rows (0 while paused)."""
        leases = await self._claim(self._limits.in_flight)
        await asyncio.gather(*(self._settle(lease) for lease in leases))
        await self._outcomes.flush(self._retry)
        return sum(len(lease.rows) for lease in leases)

    # -- claiming ----------------------------------------------------------------------------------------------------

    async def _claim_until(self, stop: Stop) -> None:
        while not stop.requested:
            await self._look(stop)

    async def _look(self, stop: Stop) -> None:
        """Claim what there is room for, or wait until there may be something to claim."""
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
        """Return for how many calls of ``handle`` to claim rows now."""
        if not self._limits.ahead:
            return 1 if self._held < self._limits.in_flight else 0
        few = self._held <= 2 * self._limits.in_flight  # claimed in large pieces
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
        """Wait until ``ready`` returns, or for the stop."""
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
            self._wake.set()  # there is room, and may be more

    async def _release(self, lease: Lease[Row]) -> None:
        await self._retry.until_available(lambda: self._table.release(lease, lease.rows))
        self._held -= 1

    async def _release_claimed(self) -> None:
        """Release what was claimed and has not begun."""
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
        """Wait; a stop ends the waits that began before it, those after it are in full."""
        if self._stopping.is_set():
            await asyncio.sleep(seconds)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()


def first_error(errors: BaseException) -> BaseException:
    """Return the first error in a group of groups: the one that ended the others."""
    while isinstance(errors, BaseExceptionGroup):
        errors = errors.exceptions[0]
    return errors
