"""Repeats the requests of ``enrichment_work`` until they are answered, refused or expired.

Guarantees, in addition to those of the engine (:mod:`infra.postgres.leased`):

- Rows are claimed only while a provider's circuit breaker admits a call; a row that was not called for because of a
  breaker keeps its number of attempts.
- A request is never dropped silently: after ``expire_days`` its outcome is ``skipped`` with the reason ``expired``,
  also while no provider is available.
- Each attempt uses the lead as it is then. A lead that was erased since the request is not looked up, nor one whose
  person has withdrawn the consent ``enrichment``; an answer that comes after an erasure is not published.

Crash: before its row is deleted, a request is repeated; it gives the same event (see
:class:`streams.enrichment.answers.EventRecords`), unless the lead's identifiers were changed in between.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from infra.clock import DAY_US, Clock, now_us
from infra.kafka.outcome_records import OutcomeRecords
from infra.kafka.producer import Output
from infra.kafka.sizes import fits
from infra.outcomes import Reason, What
from infra.postgres.leased_rows import Done, Lease, Parked
from infra.retry import Retry
from infra.runtime import Stop
from schemas.lead import parse_lead
from streams.enrichment.answers import (
    ERASED,
    EventRecords,
    describe,
    obstacle_of,
    open_failure,
)
from streams.enrichment.erased import Erasures
from streams.enrichment.providers import Found, LookupFailed
from streams.enrichment.waterfall import Enrichment, Lookups
from streams.enrichment.work_table import EnrichmentWorkTable, WorkRow

_BEHIND_S = 1.0  # between the end of a breaker's time and the next attempt of the row that has failed
_EXPIRE_ROWS = 500  # of one statement

Deliver = Callable[[Sequence[Output]], Awaitable[None]]


class WorkConfig(BaseModel):
    """Settings LEADSTREAM_ENRICHMENT_*, of the requests that no provider could answer yet."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    expire_days: float = Field(3, gt=0, le=365, description="Days after which an open request is not tried any more.")
    backoff_s: float = Field(5, gt=0, le=3600, description="Mean wait before the second attempt, in seconds; doubles.")
    backoff_max_s: float = Field(300, gt=0, le=86_400, description="Maximum of the mean wait between two attempts.")
    in_flight: int = Field(16, ge=1, le=500, description="Open requests that one process repeats at the same time.")
    poll_s: float = Field(0.5, gt=0, le=60, description="Interval of looking for due requests, in seconds.")
    lease_s: float = Field(
        120, ge=70, le=3600, description="Time after which the work of a killed process is repeated."
    )
    sweep_s: float = Field(30, gt=0, le=3600, description="Interval of looking for expired requests, in seconds.")

    @property
    def expire_us(self) -> int:
        """``expire_days`` in microseconds."""
        return int(self.expire_days * DAY_US)


class OpenRequests:
    """Repeats open requests; the engine calls :meth:`handle` with leases of one row.

    ``deliver`` publishes the lead events.
    """

    def __init__(
        self,
        waterfall: Lookups,
        events: EventRecords,
        deliver: Deliver,
        *,
        erasures: Erasures,
        clock: Clock = now_us,
    ) -> None:
        self._erasures = erasures
        self._waterfall = waterfall
        self._events = events
        self._deliver = deliver
        self._clock = clock

    async def handle(self, lease: Lease[WorkRow]) -> list[tuple[WorkRow, Done | Parked]]:
        """Repeat the request of ``lease`` unless it has expired or its lead was erased; return its result.

        Raises:
            DependencyUnavailable: Postgres or Kafka is unavailable.

        """
        (row,) = lease.rows
        return [(row, await self._repeat(row))]

    async def _repeat(self, row: WorkRow) -> Done | Parked:
        if not row.lead or self._clock() >= row.expires_at:
            return Done(What.SKIPPED, Reason.EXPIRED if row.lead else Reason.ERASED, row.last_error)
        lead = parse_lead(row.lead)
        if obstacle := obstacle_of(lead):
            return Done(*obstacle)
        enrichment = await self._waterfall.enrich(row.subject.tenant, lead)
        if await self._erasures.erased(lead["lead_id"], row.read_at):
            return Done(*ERASED)
        if failure := open_failure(enrichment):
            return self._parked(row, failure, describe(enrichment)[2])
        return await self._answered(row, lead, enrichment)

    def _parked(self, row: WorkRow, failure: LookupFailed, detail: str) -> Parked:
        if failure.until:
            return Parked(failure.reason, detail, until=min(failure.until, row.expires_at), attempts=0)
        # Due after the rows that wait for the breaker: the next probe must be the call of another one, since a
        # provider may fail for this lead only.
        return Parked(failure.reason, detail, at_least_s=self._waterfall.closed_after_s(row.subject.tenant) + _BEHIND_S)

    async def _answered(self, row: WorkRow, lead: Mapping[str, Any], enrichment: Enrichment | None) -> Done:
        if enrichment is not None and isinstance(enrichment.result, Found):
            event = self._events.build(row.subject, lead, enrichment, row.traceparent.encode(), row.read_at)
            if not fits(event):
                return Done(What.SKIPPED, Reason.TOO_LARGE, enrichment.provider)
            await self._deliver([event])
        return Done(*describe(enrichment))


async def expire(
    table: EnrichmentWorkTable,
    records: OutcomeRecords,
    deliver: Deliver,
    *,
    retry: Retry,
    stop: Stop,
    every_s: float,
) -> None:
    """Delete expired requests and publish their outcomes, every ``every_s`` seconds, until ``stop``."""
    while not stop.requested:
        expired = await retry.until_available(lambda: table.expire(_EXPIRE_ROWS))
        outcomes = [
            records.build(
                What.SKIPPED,
                Reason.EXPIRED,
                tenant=each.subject.tenant,
                event_id=each.subject.event_id,
                lead_id=each.subject.lead_id,
                version=each.subject.version,
                source=each.subject.source,
                detail=each.last_error,
            )
            for each in expired
        ]
        await retry.until_available(lambda outcomes=outcomes: deliver(outcomes))  # type: ignore[misc]
        if len(expired) < _EXPIRE_ROWS:
            await stop.wait(every_s)
