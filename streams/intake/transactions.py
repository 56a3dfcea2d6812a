"""Decides a batch in one transaction, or in several if it contends with another worker.

After contending twice, a batch is split in halves, in the order of its events, and so are its parts, down to single
events. So the contending events are decided alone and all others in large parts. A committed part stays committed: if a
later part fails, the batch is repeated, and the committed events are then redeliveries.
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
from streams.intake.decide import Decision, Oversize
from streams.intake.event import Event
from streams.intake.route import STAGE
from streams.intake.store import Contended

_ATTEMPTS = 2  # for a part with several events, before it is split
_ATTEMPTS_ALONE = 10  # for a single event
_BACKOFF = Backoff(0.005, 0.5)
_log = log(STAGE)


class TooLarge(Exception):  # noqa: N818 - control flow, not a defect
    """Rolls a transaction back: its events must be decided again without those in ``oversize``."""

    def __init__(self, oversize: Sequence[Oversize]) -> None:
        super().__init__(f"{len(oversize)} events are too large")
        self.oversize = oversize


@dataclass(frozen=True, slots=True)
class Decided:
    """The committed decisions of a batch, in the order of its events, and its events that are too large."""

    decisions: list[Decision] = field(default_factory=list)
    oversize: list[Oversize] = field(default_factory=list)


async def decide_all(
    events: Sequence[Event],
    decide: Callable[[Sequence[Event]], Awaitable[Decision]],
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> Decided:
    """Decide ``events``.

    Args:
        events: of one batch, in order.
        decide: decides the events that it is called with in one transaction.
        sleep: waits for a number of seconds, between attempts.

    Raises:
        DependencyUnavailable: Postgres is unavailable, or a single event contended 10 times. The transactions before it
            are committed.

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
        """Decide a part of the batch; return the parts to decide instead if that failed, else no parts."""
        for _ in range(_ATTEMPTS if len(events) > 1 else _ATTEMPTS_ALONE):
            try:
                self.decided.decisions.append(await self._decide(events))
            except TooLarge as found:
                # Decided again from the start, because oversize events must not bind identities, merge or create leads.
                self.decided.oversize.extend(found.oversize)
                dead = {oversize.event.coordinates for oversize in found.oversize}
                rest = [event for event in events if event.coordinates not in dead]
                return [rest] if rest else []
            except Contended as contended:
                await self._back_off(contended, len(events))
            else:
                self._failures = 0
                return []
        if len(events) == 1:
            raise DependencyUnavailable("Postgres", f"an event contended with other workers {_ATTEMPTS_ALONE} times")
        return [events[: len(events) // 2], events[len(events) // 2 :]]

    async def _back_off(self, contended: Contended, events: int) -> None:
        metrics.CONTENTION.labels(STAGE, contended.what).inc()
        _log.info("contended", extra={"fields": {"what": contended.what, "events": events}})
        self._failures += 1
        await self._sleep(_BACKOFF.seconds(self._failures))
