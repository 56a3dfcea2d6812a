"""The pause of a destination: a time without calls to it."""

from __future__ import annotations

from infra import metrics
from infra.clock import Clock, now_us, seconds_us
from infra.outcomes import Reason
from infra.retry import Backoff
from infra.runtime import log


class Pause:
    """Pauses all calls to a destination: rate limit, quota, rejected token, wrong set-up, or no connection.

    A pause ends when its time is over; new work does not shorten it. It exists in this process only and is logged as
    ``paused``. From its start until the first response after its end the metric ``leadstream_waiting`` is 1, with the
    labels ``stage`` and ``dependency`` (the destination's name).
    """

    def __init__(self, stage: str, destination: str, backoff: Backoff, clock: Clock = now_us) -> None:
        self._gauge = metrics.WAITING.labels(stage, destination)
        self._log = log(stage)
        self._destination = destination
        self._backoff = backoff
        self._clock = clock
        self._consecutive = 0
        self.until = 0

    @property
    def active(self) -> bool:
        """Whether calls are paused now."""
        return self._clock() < self.until

    def begin(self, reason: Reason, *, wait_s: float = 0, detail: str = "") -> int:
        """Pause for ``wait_s`` seconds; 0: for a backoff that grows with the number of consecutive pauses.

        An active pause is never shortened. ``detail``: an error code, never the text of a response.

        Returns:
            The end of the pause, in microseconds since 1970.

        """
        self._consecutive += 1
        until = self._clock() + seconds_us(wait_s or self._backoff.seconds(self._consecutive))
        if until > self.until:
            self.until = until
            self._gauge.set(1)
            seconds = round((until - self._clock()) / 1e6, 1)
            fields = {"for": self._destination, "reason": reason.value, "seconds": seconds, "detail": detail}
            self._log.warning("paused", extra={"fields": fields})
        return self.until

    def answered(self) -> None:
        """Reset the backoff: the destination responded normally, or rejected only one row."""
        self._consecutive = 0
        if not self.active:
            self._gauge.set(0)

    def end(self) -> None:
        """End the pause: the destination is not used any more."""
        self.until = 0
        self._gauge.set(0)
