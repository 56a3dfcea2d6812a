"""The circuit breaker of one provider: while calls to it fail, they are not made; one probe decides when to resume.

    closed ──▶ open ──its time is over──▶ half-open ──the probe is answered──▶ closed
                 ◀──────────────the probe fails, for longer───┘

It opens after ``breaker_failures`` consecutive failed calls, and at once if the account itself is the reason (quota,
rejected key). An answer, also "not found" or "rejected", is no failure. It exists in this process only. From its
opening until it closes, the metric ``leadstream_waiting`` is 1, with the provider's name as ``dependency``.
"""

from __future__ import annotations

import random

from infra.clock import Clock, now_us, seconds_us
from infra.outcomes import Reason
from infra.postgres.leased_pause import Pause
from infra.retry import Backoff
from infra.runtime import log
from streams.enrichment.providers import LookupFailed, LookupResult, ProviderConfig

_OF_THE_ACCOUNT = frozenset({Reason.QUOTA, Reason.UNAUTHORIZED, Reason.MISCONFIGURED})  # every call fails
_PROBING_S = 1.0  # when to try again while a probe is in progress


class Breaker:
    """The breaker of the provider ``name``, called in one event loop.

    Each call is enclosed in :meth:`begin` and :meth:`end`. The result of a call that began before the breaker has
    opened or closed is ignored.
    """

    def __init__(self, stage: str, name: str, config: ProviderConfig, clock: Clock = now_us) -> None:
        backoff = Backoff(config.breaker_s, config.breaker_max_s, _half_to_one_and_a_half)
        self._pause = Pause(stage, name, backoff, clock)
        self._limit = config.breaker_failures
        self._clock = clock
        self._log = log(stage)
        self._name = name
        self._failures = 0
        self._opened_by: LookupFailed | None = None
        self._probing = False
        self._changes = 0  # how often it has opened or closed

    @property
    def closed(self) -> bool:
        """Whether all calls are made."""
        return self._opened_by is None

    @property
    def admits(self) -> bool:
        """Whether a call may begin now: the breaker is closed, or its time is over and no probe is in progress."""
        return self._opened_by is None or not (self._pause.active or self._probing)

    def refusal(self) -> LookupFailed:
        """Return the failure of a call that is not made."""
        reason = self._opened_by.reason if self._opened_by else Reason.UNAVAILABLE
        until = max(self._pause.until, self._clock() + seconds_us(_PROBING_S))
        return LookupFailed(reason, retryable=True, detail="circuit breaker open", until=until)

    def begin(self) -> int | None:
        """Begin a call; return the number to pass to :meth:`end`, or None if no call may be made."""
        if not self.admits:
            return None
        self._probing = self._opened_by is not None
        return self._changes

    def end(self, call: int, result: LookupResult) -> None:
        """End the call number ``call`` with ``result``."""
        if call != self._changes:
            return
        if isinstance(result, LookupFailed) and not result.refused:
            self._failures += 1
            if self._probing or self._failures >= self._limit or result.reason in _OF_THE_ACCOUNT:
                self._open(result)
            return
        self._failures = 0
        if self._probing:
            self._close()

    def _open(self, failed: LookupFailed) -> None:
        self._changes += 1
        self._probing = False
        self._opened_by = failed
        self._pause.begin(failed.reason, detail=failed.detail)

    def _close(self) -> None:
        self._changes += 1
        self._probing = False
        self._opened_by = None
        self._pause.answered()
        self._log.warning("provider available again", extra={"fields": {"provider": self._name}})


def _half_to_one_and_a_half() -> float:
    """Return the jitter as :class:`Backoff` takes it: half of the mean, up to one and a half of it."""
    return random.uniform(0.25, 0.75)  # noqa: S311 - jitter
