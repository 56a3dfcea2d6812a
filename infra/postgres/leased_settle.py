"""Processes one lease: calls ``handle``, writes the result of each row, and queues its outcome."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Generic

from infra.clock import Clock, seconds_us
from infra.errors import DependencyUnavailable
from infra.kafka.outcome_records import OutcomeRecords
from infra.kafka.producer import Output
from infra.outcomes import Reason, What
from infra.postgres.leased_outcomes import OutcomeQueue
from infra.postgres.leased_pause import Pause
from infra.postgres.leased_rows import Done, Lease, Parked, Released, Row
from infra.postgres.leased_table import LeasedTable
from infra.retry import Backoff, Retry, raise_if_cancelled
from infra.runtime import log

_UNAVAILABLE_S = 1.0  # delay of rows whose handling found a dependency unavailable

Settled = Sequence[tuple[Row, Done | Parked | Released]]
Handle = Callable[[Lease[Row]], Awaitable[Settled[Row]]]


class Settle(Generic[Row]):
    """Processes leases, several concurrently. ``backoff``: of parked rows.

    ``pause`` begins if ``handle`` raises DependencyUnavailable. ``overdue_writes``: the number of results whose write
    has failed at least once and is being retried; their leases may end before it succeeds.
    """

    def __init__(
        self,
        stage: str,
        table: LeasedTable[Row],
        handle: Handle[Row],
        *,
        backoff: Backoff,
        pause: Pause,
        outcomes: OutcomeQueue,
        records: OutcomeRecords,
        retry: Retry,
        clock: Clock,
    ) -> None:
        self._table = table
        self._handle = handle
        self._backoff = backoff
        self._pause = pause
        self._paused = False
        self.overdue_writes = 0
        self._outcomes = outcomes
        self._records = records
        self._retry = retry
        self._clock = clock
        self._log = log(stage)

    async def __call__(self, lease: Lease[Row]) -> None:
        """Call ``handle``, write the result of each row, and queue the outcomes."""
        settled = await self._handled(lease)
        if len(settled) != len(lease.rows):
            raise RuntimeError(f"handle settled {len(settled)} of {len(lease.rows)} rows")
        # All is written before the outcomes are queued: the queue waits while Kafka is unavailable.
        outcomes = await self._finish(lease, [(row, result) for row, result in settled if isinstance(result, Done)])
        outcomes += await self._park(lease, [(row, result) for row, result in settled if isinstance(result, Parked)])
        await self._release(lease, [(row, result) for row, result in settled if isinstance(result, Released)])
        await self._outcomes.put(outcomes)

    async def _handled(self, lease: Lease[Row]) -> Settled[Row]:
        limit = lease.begin(self._table.lease_s, self._clock())
        try:
            async with limit:
                settled = await self._handle(lease)
        except TimeoutError:
            if not limit.expired():
                raise
            return [(row, self._table.overdue(row)) for row in lease.rows]
        except DependencyUnavailable as error:
            raise_if_cancelled(error)
            self._log.warning("released", extra={"fields": {"error": str(error), "rows": len(lease.rows)}})
            if not self._pause.active:  # otherwise a concurrent call has begun it
                self._pause.begin(Reason.UNAVAILABLE, detail=error.name)
                self._paused = True
            return [(row, Released(_UNAVAILABLE_S)) for row in lease.rows]
        if self._paused and not self._pause.active:
            self._pause.answered()
            self._paused = False
        return settled

    async def _finish(self, lease: Lease[Row], done: Sequence[tuple[Row, Done]]) -> list[Output]:
        if not done:
            return []
        rows, exact = [row for row, _ in done], self._table.finish_is_exact
        written = await self._write(lambda: self._table.finish(lease, done), rows, exact=exact)
        return [
            self._outcome(row, each.what, each.reason, each) for row, each in done if each.what and row.key in written
        ]

    async def _park(self, lease: Lease[Row], parked: Sequence[tuple[Row, Parked]]) -> list[Output]:
        if not parked:
            return []
        waits = [(row, each, self._due_at(row, each)) for row, each in parked]
        written = await self._write(lambda: self._table.park(lease, waits), [row for row, _ in parked])
        changed = [(row, each) for row, each in parked if row.key in written and row.last_error != each.reason.value]
        return [self._outcome(row, What.PARKED, each.reason, each) for row, each in changed]

    async def _release(self, lease: Lease[Row], released: Sequence[tuple[Row, Released]]) -> None:
        for after_s in {each.after_s for _, each in released}:
            rows = [row for row, each in released if each.after_s == after_s]
            due_at = self._clock() + seconds_us(after_s) if after_s else 0
            await self._retry.until_available(lambda rows=rows, at=due_at: self._table.release(lease, rows, at))  # type: ignore[misc]

    def _due_at(self, row: Row, parked: Parked) -> int:
        if parked.until is not None:
            return parked.until
        return self._clock() + seconds_us(max(parked.at_least_s, self._backoff.seconds(row.attempts + 1)))

    async def _write(
        self, step: Callable[[], Awaitable[Collection[str]]], rows: Sequence[Row], *, exact: bool = False
    ) -> Collection[str]:
        """Write, retried while Postgres is unavailable; return the keys to report.

        If a response was lost, those are all keys, unless ``exact``: a repeated step returns what the first returned.
        """
        failed = False

        async def write() -> Collection[str]:
            nonlocal failed
            try:
                return await step()
            except DependencyUnavailable:
                self.overdue_writes += not failed
                failed = True
                raise

        try:
            written = await self._retry.until_available(write)
        finally:
            self.overdue_writes -= failed
        keys = {row.key for row in rows}
        if failed and not exact:
            return keys
        if lost := keys - set(written):
            self._log.error(
                "result not written: the lease expired and the rows will be processed again",
                extra={"fields": {"keys": sorted(lost)}},
            )
        return written

    def _outcome(self, row: Row, what: What, reason: Reason | None, result: Done | Parked) -> Output:
        about = row.subject
        return self._records.build(
            what,
            reason,
            tenant=about.tenant,
            event_id=about.event_id,
            lead_id=about.lead_id,
            version=result.version or about.version,
            source=about.source,
            detail=result.detail,
        )
