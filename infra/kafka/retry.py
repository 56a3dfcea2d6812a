"""Retrying while a dependency is unavailable: backoff with jitter, shown in the log, on ``/ready`` and as a metric."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from infra import metrics
from infra.errors import DependencyAway
from infra.runtime import Status, log

_LOG_AGAIN_S = 30.0
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses in seconds: ``first_s``, doubled up to ``most_s``, each times 1 - ``jitter`` to 1 + ``jitter``."""

    first_s: float = 0.1
    most_s: float = 5.0
    jitter: float = 0.5

    def pause_s(self, retries: int) -> float:
        """Return the pause before retry number ``retries`` (from 0), drawn anew each time."""
        pause = min(self.first_s * 2.0 ** min(retries, 32), self.most_s)
        return pause * random.uniform(1 - self.jitter, 1 + self.jitter)  # noqa: S311 - jitter


DEFAULT = Backoff()


class Retry:
    """The retries of one consumer group; ``unavailable`` names the dependencies that are.

    ``sleep`` waits for a pause; it may return early.
    """

    def __init__(
        self,
        group: str,
        status: Status,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        backoff: Backoff = DEFAULT,
    ) -> None:
        self.unavailable: set[str] = set()
        self._group = group
        self._status = status
        self._sleep = sleep
        self._backoff = backoff
        self._log = log(group)
        self._logged_at: dict[str, float] = {}

    async def until_available(self, step: Callable[[], Awaitable[Result]]) -> Result:
        """Await ``step`` until it does not raise DependencyAway, and return its result; it has to be repeatable."""
        retries = 0
        seen: set[str] = set()
        while True:
            try:
                result = await step()
            except DependencyAway as error:
                seen.add(error.who)
                self._is_unavailable(error)
                await self._sleep(self._backoff.pause_s(retries))
                retries += 1
            else:
                for who in seen & self.unavailable:
                    self._is_available(who)
                return result

    def _is_unavailable(self, error: DependencyAway) -> None:
        if error.who not in self.unavailable or time.monotonic() >= self._logged_at[error.who] + _LOG_AGAIN_S:
            self._log.warning(
                "dependency unavailable, retrying", extra={"fields": {"dependency": error.who, "reason": str(error)}}
            )
            self._logged_at[error.who] = time.monotonic()
        self.unavailable.add(error.who)
        metrics.WAITING.labels(self._group, error.who).set(1)
        self._show()

    def _is_available(self, who: str) -> None:
        self._log.warning("dependency available again", extra={"fields": {"dependency": who}})
        self.unavailable.discard(who)
        metrics.WAITING.labels(self._group, who).set(0)
        self._show()

    def _show(self) -> None:
        names = ", ".join(sorted(self.unavailable))
        self._status.waiting = f"waiting for {names}" if names else ""
