"""Values that the engine for leased work, its table and ``handle`` exchange: rows, leases and results."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from infra.kafka.outcome_records import NOWHERE, Coordinates
from infra.outcomes import Reason, What
from infra.postgres.pool import INFINITY

NEVER = INFINITY  # due_at of a row that is parked until it is released (unparked) or changed


@dataclass(frozen=True, slots=True)
class Subject:
    """The subject of a row's outcomes, with the fields of :meth:`OutcomeRecords.build`."""

    tenant: str
    event_id: str = ""
    lead_id: str = ""
    version: int = 0
    source: Coordinates = NOWHERE


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedRow:
    """A claimed row; tables subclass it. ``key``: as text, for every type of column."""

    key: str
    attempts: int
    last_error: str
    subject: Subject


Row = TypeVar("Row", bound=ClaimedRow)


@dataclass(slots=True)
class Lease(Generic[Row]):
    """Rows leased until ``until`` (microseconds since 1970), which is also the lease's token.

    ``deadline``, in seconds of the event loop's clock: no call to a destination may run after it. It is half a lease
    after the claim or the last renewal, so the clocks of workers may differ by up to half a lease.
    """

    until: int
    rows: list[Row]
    deadline: float = 0
    _limit: asyncio.Timeout | None = None

    def begin(self, lease_s: float, now: int) -> asyncio.Timeout:
        """Set the deadline and return the timeout of work that exceeds it. ``now`` is in microseconds since 1970."""
        self._set_deadline(lease_s, now)
        self._limit = asyncio.timeout_at(self.deadline + lease_s / 8)
        return self._limit

    def extend(self, until: int, lease_s: float, now: int) -> None:
        """Set the end of the renewed lease and a new deadline. ``now`` is in microseconds since 1970."""
        self.until = until
        self._set_deadline(lease_s, now)
        if self._limit is not None:
            self._limit.reschedule(self.deadline + lease_s / 8)

    def _set_deadline(self, lease_s: float, now: int) -> None:
        self.deadline = asyncio.get_running_loop().time() + (self.until - now) / 1e6 - lease_s / 2


@dataclass(frozen=True, slots=True)
class Done:
    """The row is finished: :meth:`LeasedTable.finish` writes ``value``. Emits ``what``; None: nothing happened.

    ``version``: of the lead, if it differs from the subject's.
    """

    what: What | None
    reason: Reason | None = None
    detail: str = ""
    version: int = 0
    value: Any = None


@dataclass(frozen=True, slots=True)
class Parked:
    """The row waits until ``until`` (microseconds, or NEVER), or for its backoff, at least ``at_least_s`` seconds.

    Emits PARKED, once for each new reason. ``attempts``: 0 if the row did not cause the failure (for example a paused
    provider). ``version``: the version of the lead that was sent. ``value``: for :meth:`LeasedTable.park` of the table.
    """

    reason: Reason
    detail: str = ""
    until: int | None = None
    at_least_s: float = 0
    attempts: int = 1
    version: int = 0
    value: Any = None


@dataclass(frozen=True, slots=True)
class Released:
    """The row is released unchanged and is due after ``after_s`` seconds. Emits nothing."""

    after_s: float = 0
