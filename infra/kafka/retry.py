"""Waiting for what is away: with backoff and jitter, said in the log, on ``/ready`` and as a metric."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from infra import metrics
from infra.errors import DependencyAway
from infra.runtime import Status, log

_BACKOFF_S = (0.1, 5.0)
_SAY_AGAIN_S = 30.0
Result = TypeVar("Result")


class Patience:
    """What the steps of one consumer group wait for; ``away`` names it. ``sleep`` is how a pause is waited for."""

    def __init__(self, group: str, status: Status, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep) -> None:
        self.away: set[str] = set()
        self._group = group
        self._status = status
        self._sleep = sleep
        self._log = log(group)
        self._said: dict[str, float] = {}

    async def persist(self, step: Callable[[], Awaitable[Result]]) -> Result:
        """Await ``step`` again and again until it raises no DependencyAway; its work is in hand, nothing is lost."""
        wait = _BACKOFF_S[0]
        waited_for: set[str] = set()
        while True:
            try:
                result = await step()
            except DependencyAway as away:
                waited_for.add(away.who)
                self._wait_for(away)
                await self._sleep(wait * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
                wait = min(wait * 2, _BACKOFF_S[1])
            else:
                for who in waited_for & self.away:
                    self._go_on(who)
                return result

    def _wait_for(self, away: DependencyAway) -> None:
        if away.who not in self.away or time.monotonic() >= self._said[away.who] + _SAY_AGAIN_S:
            self._log.warning("waiting", extra={"fields": {"for": away.who, "why": str(away)}})
            self._said[away.who] = time.monotonic()
        self.away.add(away.who)
        metrics.WAITING.labels(self._group, away.who).set(1)
        self._show()

    def _go_on(self, who: str) -> None:
        self._log.warning("going on", extra={"fields": {"with": who}})
        self.away.discard(who)
        metrics.WAITING.labels(self._group, who).set(0)
        self._show()

    def _show(self) -> None:
        self._status.waiting = f"waiting for {', '.join(sorted(self.away))}" if self.away else ""
