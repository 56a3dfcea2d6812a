"""What flows between the engine of leased work, its table and ``handle``: rows, leases, and what became of a row."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from infra.kafka.outcome_records import NOWHERE, Coordinates
from infra.outcomes import Reason, What
from infra.postgres.pool import INFINITY

NEVER = INFINITY  # due_at of a row that is parked until it is released or changed


@dataclass(frozen=True, slots=True)
class Subject:
    """What a row's outcomes are about; the fields are those of :meth:`OutcomeRecords.build`."""

    tenant: str
    event_id: str = ""
    lead_id: str = ""
    version: int = 0
    source: Coordinates = NOWHERE


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedRow:
    """What the engine knows of a claimed row; tables subclass it. ``key``: as text, whatever the column's type."""

    key: str
    attempts: int
    last_error: str
    subject: Subject


Row = TypeVar("Row", bound=ClaimedRow)


@dataclass(slots=True)
class Lease(Generic[Row]):
    """Rows that are ours until ``until`` (microseconds since 1970), which is also the token.

    ``deadline``, in seconds of the event loop's clock: no call to a destination may be under way after it. It is half
    of the lease after the claim, or the last renewal, so the clocks of workers may differ by the other half.
    """

    until: int
    rows: list[Row]
    deadline: float = 0
    _limit: asyncio.Timeout | None = None

    def begin(self, lease_s: float, now: int) -> asyncio.Timeout:
        """Set the deadline, and return the time-out of work that does not keep to it; ``now`` in microseconds."""
        self._set_deadline(lease_s, now)
        self._limit = asyncio.timeout_at(self.deadline + lease_s / 8)
        return self._limit

    def extend(self, until: int, lease_s: float, now: int) -> None:
        """Note that the lease was renewed; ``now`` in microseconds."""
        self.until = until
        self._set_deadline(lease_s, now)
        if self._limit is not None:
            self._limit.reschedule(self.deadline + lease_s / 8)

    def _set_deadline(self, lease_s: float, now: int) -> None:
        self.deadline = asyncio.get_running_loop().time() + (self.until - now) / 1e6 - lease_s / 2


@dataclass(frozen=True, slots=True)
class Done:
    """The row is finished: :meth:`LeasedTable.finish` writes ``value``. Emits ``what``.

    ``version``: of the lead, where it is another one than the subject's.
    """

    what: What
    reason: Reason | None = None
    detail: str = ""
    version: int = 0
    value: Any = None


@dataclass(frozen=True, slots=True)
class Parked:
    """The row waits, alone: until ``until`` (microseconds, or NEVER), or for its backoff, at least ``at_least_s``.

    Emits PARKED, once for each new reason. ``attempts``: 0 where the row is not to blame (such as a provider that is
    paused). ``version``: of the lead, as it was tried.
    """

    reason: Reason
    detail: str = ""
    until: int | None = None
    at_least_s: float = 0
    attempts: int = 1
    version: int = 0


@dataclass(frozen=True, slots=True)
class Released:
    """The row is given back as it was claimed, due after ``after_s`` seconds. Emits nothing."""

    after_s: float = 0
