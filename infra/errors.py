"""Classify errors once.

    Exception
    ├── DependencyAway      a dependency is not reachable: wait with backoff and do the same again, nothing is lost
    ├── ClientFailed        a client can never work again: end the process, it is restarted with a new one
    ├── TooManyDead         a window holds more dead records than is plausible: stop, do not empty the topic
    └── anything else       a bug: the process stops loudly, its offsets uncommitted

HTTP answers of connectors become a :class:`Verdict` by :func:`classify_status`, unless the connector's own table
(what *its* errors mean) says otherwise first.
"""

from __future__ import annotations

from enum import StrEnum


class DependencyAway(Exception):  # noqa: N818 - it is a state of the world, not a mistake
    """A dependency (``who``) is not reachable now; the caller waits and repeats the same work."""

    def __init__(self, who: str, why: BaseException | str) -> None:
        super().__init__(f"{who} is unavailable: {why if isinstance(why, str) else f'{type(why).__name__}: {why}'}")
        self.who = who


class ClientFailed(Exception):  # noqa: N818 - it is a state, not a mistake
    """A client of a dependency can never work again, unlike the dependency: the process ends and is restarted."""


class TooManyDead(Exception):  # noqa: N818
    """More of the last records were dead than ``LEADSTREAM_MAX_DEAD_SHARE`` allows."""


class Verdict(StrEnum):
    """What to do about a failed call."""

    RETRY = "retry"  # same call again, with backoff and jitter
    PAUSE = "pause"  # the destination wants no calls for a while: nothing goes there until then
    REFRESH = "refresh"  # get a new token once, then the same call
    DEAD = "dead"  # it will never be taken


_STATUS = {401: Verdict.REFRESH, 408: Verdict.RETRY, 409: Verdict.RETRY, 423: Verdict.RETRY, 425: Verdict.RETRY}
_STATUS |= {429: Verdict.PAUSE, 501: Verdict.DEAD}


def classify_status(status: int) -> Verdict:
    """Return what an HTTP ``status`` of 400 or more means where the connector's own table is silent."""
    if status in _STATUS:
        return _STATUS[status]
    return Verdict.RETRY if status >= 500 else Verdict.DEAD  # noqa: PLR2004 - the border of the 5xx class
