"""Decides a batch in transactions of a bounded size, and in smaller ones if they contend with another worker.

A part has so many events that its records are probably below a size: the number follows from the parts before it. A
part that turns out to be too large is rolled back and cut.

After contending twice, a part is split in halves, in the order of its events, and so are its parts, down to single
events. So the contending events are decided alone and all others in large parts. A committed part stays committed: if a
later part fails, the batch is repeated, and the committed events are then redeliveries.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

from infra import metrics
from infra.errors import DependencyUnavailable
from infra.retry import Backoff
from infra.runtime import log
from streams.intake.decision import Decision, Oversize
from streams.intake.erasure import Follows
from streams.intake.event import Event
from streams.intake.part_size import Cut, PartSize
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


class Late(Exception):  # noqa: N818 - control flow, not a defect
    """Rolls a transaction back: its events must be decided again without ``events``, said before an erasure."""

    def __init__(self, events: Sequence[Event]) -> None:
        super().__init__(f"{len(events)} events were said before an erasure")
        self.events = events


class Decided(NamedTuple):
    """A committed decision, and events that were too large to be in it, or were said before an erasure."""

    decision: Decision
    oversize: Sequence[Oversize] = ()
    late: Sequence[Event] = ()


async def decide_in_parts(
    events: Sequence[Event],
    decide: Callable[[Sequence[Event]], Awaitable[Decision]],
    size: PartSize,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> AsyncIterator[Decided]:
    """Decide ``events`` and yield the decision of each part when it is committed, in order.

    Args:
        events: of one batch, in order.
        decide: decides the events that it is called with in one transaction.
        size: of the parts; is adapted.
        sleep: waits for a number of seconds, between attempts.

    Raises:
        DependencyUnavailable: Postgres is unavailable, or a single event contended 10 times. The transactions before it
            are committed.

    """
    attempts = _Attempts(decide, size, sleep)
    left = deque(_commands_alone(events))
    while left:
        part = left.popleft()
        if len(part) > size.events:
            left.appendleft(part[size.events :])
            part = part[: size.events]
        decided, undecided = await attempts.decide(part)
        left.extendleft(reversed(undecided))
        if decided is not None:
            yield decided


def _commands_alone(events: Sequence[Event]) -> list[Sequence[Event]]:
    """Cut ``events`` around commands, which change who is who: each is decided alone, after those before it."""
    cuts = {0, len(events)}
    for number, event in enumerate(events):
        if event.type.lead_ids:
            cuts |= {number, number + 1}
    places = sorted(cuts)
    return [events[start:end] for start, end in pairwise(places)]


class _Attempts:
    def __init__(
        self,
        decide: Callable[[Sequence[Event]], Awaitable[Decision]],
        size: PartSize,
        sleep: Callable[[float], Awaitable[object]],
    ) -> None:
        self._decide = decide
        self._size = size
        self._sleep = sleep
        self._failures = 0  # since the last commit

    async def decide(self, events: Sequence[Event]) -> tuple[Decided | None, list[Sequence[Event]]]:
        """Decide a part; return the decision if it was committed, and the parts that are still to be decided."""
        for _ in range(_ATTEMPTS if len(events) > 1 else _ATTEMPTS_ALONE):
            try:
                decision = await self._decide(events)
            except TooLarge as found:
                # Decided again from the start, because oversize events must not bind identities, merge or create leads.
                return Decided(Decision(), found.oversize), _without(events, [each.event for each in found.oversize])
            except Late as found:
                return Decided(Decision(), late=found.events), _without(events, found.events)
            except Cut as cut:
                if len(events) == 1:  # the lead that it would make, by merging, is larger than any transaction may be
                    return Decided(Decision(), [Oversize(events[0], "lead")]), []
                first = min(max(int(len(events) * cut.share), 1), len(events) - 1)
                self._size.cut(first)
                break
            except Follows as found:
                first = 1 + next(n for n, each in enumerate(events) if each.coordinates == found.erasure.coordinates)
                break
            except Contended as contended:
                await self._back_off(contended, len(events))
            else:
                self._failures = 0
                self._size.decided(len(events), decision.bytes)
                return Decided(decision), []
        else:
            if len(events) == 1:
                raise DependencyUnavailable("Postgres", f"an event contended with others {_ATTEMPTS_ALONE} times")
            first = len(events) // 2
        return None, [events[:first], events[first:]]

    async def _back_off(self, contended: Contended, events: int) -> None:
        metrics.CONTENTION.labels(STAGE, contended.what).inc()
        _log.info("contended", extra={"fields": {"what": contended.what, "events": events}})
        self._failures += 1
        await self._sleep(_BACKOFF.seconds(self._failures))


def _without(events: Sequence[Event], dead: Sequence[Event]) -> list[Sequence[Event]]:
    """Return the parts to decide after ``dead`` are left out."""
    left_out = {event.coordinates for event in dead}
    rest = [event for event in events if event.coordinates not in left_out]
    return [rest] if rest else []
