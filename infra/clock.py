"""The one clock and the one unit of time: integer microseconds since 1970-01-01 UTC, named ``*_us`` or ``at``.

Code that needs the time gets a :data:`Clock` passed in; composition roots pass :func:`now_us`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

SECOND_US = 1_000_000
DAY_US = 86_400 * SECOND_US
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

Clock = Callable[[], int]


def now_us() -> int:
    """Return the wall clock in microseconds since 1970 UTC."""
    return time.time_ns() // 1000


def seconds_us(seconds: float) -> int:
    """Return ``seconds`` in microseconds."""
    return int(seconds * SECOND_US)


def to_datetime(at_us: int) -> datetime:
    """Return ``at_us`` as a datetime in UTC. Raises OverflowError outside the years 1 to 9999."""
    return _EPOCH + timedelta(microseconds=at_us)


def from_datetime(at: datetime) -> int:
    """Return an aware datetime as microseconds since 1970, exactly. Raises TypeError if it has no time zone."""
    return (at - _EPOCH) // _MICROSECOND


def uuid7(at_us: int | None = None) -> str:
    """Return a UUID version 7 for the time ``at_us`` (default: now); UUIDs of later times sort after earlier ones.

    48 bits of milliseconds, 12 bits of the microseconds within the millisecond, 62 random bits.
    Source: RFC 9562, section 5.7 and method 3 of section 6.2.
    """
    at_us = now_us() if at_us is None else at_us
    fraction = (at_us % 1000) * 4096 // 1000
    number = (at_us // 1000) << 80 | 7 << 76 | fraction << 64 | 2 << 62 | secrets.randbits(62)
    digits = f"{number:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
