"""Classify errors once.

    Exception
    ├── DependencyUnavailable      a dependency is unavailable: retry the same work with backoff, nothing is lost
    ├── ClientFailed        a client can never work again: end the process, it is restarted with a new one
    ├── TooManyDead         a window holds more dead records than is plausible: stop, do not empty the topic
    └── anything else       a bug: the process stops with the exception logged and its offsets uncommitted

HTTP responses of connectors become a :class:`Verdict` by :func:`classify_status`, unless the connector's own table of
errors has the status.
"""

from __future__ import annotations

from enum import StrEnum


class DependencyUnavailable(Exception):  # noqa: N818 - a state of the dependency, not a defect
    """The dependency ``name`` is unavailable; the caller retries the same work with backoff."""

    def __init__(self, name: str, cause: BaseException | str) -> None:
        detail = cause if isinstance(cause, str) else f"{type(cause).__name__}: {cause}"
        super().__init__(f"{name} is unavailable: {detail}")
        self.name = name


class ClientFailed(Exception):  # noqa: N818 - a state of the client, not a defect
    """A client of a dependency failed permanently: the process ends, and is restarted with a new client."""


class TooManyDead(Exception):  # noqa: N818 - a state of the topic, not a defect
    """A larger share of the last records is dead than ``LEADSTREAM_MAX_DEAD_SHARE`` allows."""


def first_error(error: BaseException) -> BaseException:
    """Return the first error in a group of groups: the one that ended the others.

    Raise it outside the ``except`` block: inside, its context would be the group that holds it, an endless chain.
    """
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class Verdict(StrEnum):
    """What to do about a failed call."""

    RETRY = "retry"  # the same call, with backoff and jitter
    PAUSE = "pause"  # no call to this destination for a while
    REFRESH = "refresh"  # get a new token once, then the same call
    DEAD = "dead"  # refused permanently


_STATUS = {401: Verdict.REFRESH, 408: Verdict.RETRY, 409: Verdict.RETRY, 423: Verdict.RETRY, 425: Verdict.RETRY}
_STATUS |= {429: Verdict.PAUSE, 501: Verdict.DEAD}


def classify_status(status: int) -> Verdict:
    """Return what to do about an HTTP ``status`` of 400 or more that is not in the connector's own table."""
    if status in _STATUS:
        return _STATUS[status]
    return Verdict.RETRY if status >= 500 else Verdict.DEAD  # noqa: PLR2004 - 5xx: the server's problem
