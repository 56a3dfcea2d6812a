"""The exceptions that callers handle differently, and the classification of HTTP statuses.

    Exception
    ├── DependencyUnavailable   a dependency is unavailable: retry the same work with backoff
    ├── ClientFailed            a client failed permanently: end the process; it is restarted with a new client
    └── any other exception     a bug: log it and end the process without a commit

A connector maps an HTTP status to a :class:`Verdict` with its own table of errors, else with :func:`classify_status`.
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
    """A client of a dependency failed permanently: the process ends and is restarted with a new client."""


def first_error(error: BaseException) -> BaseException:
    """Return the innermost first error of an exception group: the one that cancelled the other tasks.

    Raise it outside the ``except`` block: inside, its context would be the group that contains it, a cyclic chain.
    """
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class Verdict(StrEnum):
    """What to do about a failed call."""

    RETRY = "retry"  # repeat the call, with backoff and jitter
    PAUSE = "pause"  # send no calls to this destination for a time
    REFRESH = "refresh"  # get a new token once, then repeat the call
    DEAD = "dead"  # rejected permanently: do not repeat the call


_STATUS = {401: Verdict.REFRESH, 408: Verdict.RETRY, 409: Verdict.RETRY, 423: Verdict.RETRY, 425: Verdict.RETRY}
_STATUS |= {429: Verdict.PAUSE, 501: Verdict.DEAD}


def classify_status(status: int) -> Verdict:
    """Return what to do about an HTTP ``status`` of 400 or more that the connector's own table does not have."""
    if status in _STATUS:
        return _STATUS[status]
    return Verdict.RETRY if status >= 500 else Verdict.DEAD  # noqa: PLR2004 - 5xx: an error of the server
