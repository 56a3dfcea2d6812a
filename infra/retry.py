"""Retrying while a dependency is unavailable: backoff with jitter, shown in the log, on ``/ready`` and as a metric."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from infra import metrics
from infra.errors import DependencyUnavailable
from infra.runtime import Status, log

_LOG_EVERY_S = 30.0
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential backoff with full jitter: uniform between 0 and twice a mean, which doubles from ``base_s``.

    ``max_s`` bounds the mean. ``chance`` is uniform in [0, 1).
    Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    base_s: float
    max_s: float
    chance: Callable[[], float] = random.random

    def seconds(self, attempt: int) -> float:
        """Return how long to wait after failure number ``attempt`` (from 1)."""
        mean: float = min(self.max_s, self.base_s * 2 ** min(attempt - 1, 30))
        return 2 * mean * self.chance()


_DEPENDENCY = Backoff(0.1, 5.0)


def raise_if_cancelled(cause: BaseException) -> None:
    """Raise CancelledError if the current task is being cancelled: a retry after ``cause`` would ignore it.

    Raises:
        CancelledError: the current task is being cancelled.

    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError from cause


class Retry:
    """Retries the steps of one consumer group; ``unavailable`` holds the names of the unavailable dependencies.

    ``sleep`` waits between two attempts; it may return early.
    """

    def __init__(
        self,
        group: str,
        status: Status,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        backoff: Backoff = _DEPENDENCY,
    ) -> None:
        self.unavailable: set[str] = set()
        self._group = group
        self._status = status
        self._sleep = sleep
        self._backoff = backoff
        self._log = log(group)
        self._logged_at: dict[str, float] = {}

    async def until_available(self, step: Callable[[], Awaitable[Result]]) -> Result:
        """Repeat ``step`` until it does not raise DependencyUnavailable; return its result. It must be repeatable.

        A cancellation ends it, even if ``step`` reports an unavailable dependency because of the cancellation.
        """
        failures = 0
        seen: set[str] = set()
        while True:
            try:
                result = await step()
            except DependencyUnavailable as error:
                raise_if_cancelled(error)
                seen.add(error.name)
                self._is_unavailable(error)
                failures += 1
                await self._sleep(self._backoff.seconds(failures))
            else:
                for name in seen & self.unavailable:
                    self._is_available(name)
                return result

    def _is_unavailable(self, error: DependencyUnavailable) -> None:
        if error.name not in self.unavailable or time.monotonic() >= self._logged_at[error.name] + _LOG_EVERY_S:
            self._log.warning(
                "dependency unavailable, retrying", extra={"fields": {"dependency": error.name, "reason": str(error)}}
            )
            self._logged_at[error.name] = time.monotonic()
        self.unavailable.add(error.name)
        metrics.WAITING.labels(self._group, error.name).set(1)
        self._status.show_unavailable(self, self.unavailable)

    def _is_available(self, name: str) -> None:
        self._log.warning("dependency available again", extra={"fields": {"dependency": name}})
        self.unavailable.discard(name)
        metrics.WAITING.labels(self._group, name).set(0)
        self._status.show_unavailable(self, self.unavailable)
