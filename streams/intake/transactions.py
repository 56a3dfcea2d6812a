"""Decide a batch in as few transactions as contention allows.

A batch is one transaction. After two conflicts with another worker it is split in two halves, in the order of its
events, down to single events: only conflicting events are decided in transactions of one event. If a later part fails,
the batch is repeated, and the events of committed parts are handled as redeliveries.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from infra import metrics
from infra.errors import DependencyUnavailable
from infra.retry import Backoff
from infra.runtime import log
from streams.intake.decide import Decision
from streams.intake.event import Event
from streams.intake.route import STAGE
from streams.intake.store import Contended

_TRIES = 2  # of a part with several events, before it is split
_TRIES_ALONE = 10
_BACKOFF = Backoff(0.005, 0.5)
_log = log(STAGE)


class TooLarge(Exception):  # noqa: N818 - a request to retry without them, not a defect
    """Raised inside a transaction, to roll it back: these events cannot be accepted."""

    def __init__(self, events: Sequence[Event]) -> None:
        super().__init__(f"{len(events)} events")
        self.events = events


@dataclass(frozen=True, slots=True)
class Decided:
    """A batch's decisions, each committed, in the order of its events; and its events that are too large."""

    decisions: list[Decision] = field(default_factory=list)
    too_large: list[Event] = field(default_factory=list)


async def decide_all(
    events: Sequence[Event],
    decide: Callable[[Sequence[Event]], Awaitable[Decision]],
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> Decided:
    """Decide ``events`` with ``decide``, which decides its argument in one transaction.

    Raises:
        DependencyUnavailable: a single event conflicts too often; the transactions before it are committed.

    """
    run = _Run(decide, sleep)
    parts = deque([events] if events else [])
    while parts:
        parts.extendleft(reversed(await run.part(parts.popleft())))
    return run.decided


class _Run:
    def __init__(
        self, decide: Callable[[Sequence[Event]], Awaitable[Decision]], sleep: Callable[[float], Awaitable[object]]
    ) -> None:
        self.decided = Decided()
        self._decide = decide
        self._sleep = sleep
        self._failures = 0  # since the last commit

    async def part(self, events: Sequence[Event]) -> list[Sequence[Event]]:
        """Decide a part, or return the parts to decide instead."""
        for _ in range(_TRIES if len(events) > 1 else _TRIES_ALONE):
            try:
                self.decided.decisions.append(await self._decide(events))
            except TooLarge as found:
                # From the beginning without them: they bind no identity, merge no leads and create none.
                self.decided.too_large.extend(found.events)
                dead = {event.coordinates for event in found.events}
                rest = [event for event in events if event.coordinates not in dead]
                return [rest] if rest else []
            except Contended as contended:
                await self._back_off(contended, len(events))
            else:
                self._failures = 0
                return []
        if len(events) == 1:
            raise DependencyUnavailable("Postgres", f"a single event contended with other workers {_TRIES_ALONE} times")
        return [events[: len(events) // 2], events[len(events) // 2 :]]

    async def _back_off(self, contended: Contended, events: int) -> None:
        metrics.CONTENTION.labels(STAGE, contended.what).inc()
        _log.info("contended", extra={"fields": {"what": contended.what, "events": events}})
        self._failures += 1
        await self._sleep(_BACKOFF.seconds(self._failures))
