"""Recognises a CRM's report of a value that it was sent: an echo. An echo does not change the lead.

A CRM reports each change of a record, also one that CRM sync wrote. If the lead has got another value since, the late
report of the earlier value would overwrite it with the authority of a CRM user. So a reported value is an echo if the
lead had this value at the time of the report, or until shortly before it: a write takes some time to reach the CRM.

What is an echo depends on the versions that were published, so on the order in which the events were accepted.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from streams.intake.event import Event
from streams.intake.merge import same_value, values_of

_CLOCK_US = 5_000_000  # maximum difference between the clocks of a CRM and of a producer
_DELAY_US = 60_000_000  # for so long after a value was replaced, CRM sync may still have written it


class PastValues(NamedTuple):
    """The values that an event gave to a lead, by field; None: removed. ``reported``: the event is a CRM's report."""

    at: int  # ``Event.at``
    values: Mapping[str, Any]
    reported: bool


def echoes(event: Event, past: Sequence[PastValues]) -> Collection[str]:
    """Return the fields of a CRM's report that are echoes.

    Args:
        event: of the authority ``REPORTING``.
        past: the newest changes of the lead, in any order.

    """
    return [name for name, value in values_of(event) if _is_echo(name, value, event.at, past)]


def _is_echo(name: str, value: Any, at: int, past: Sequence[PastValues]) -> bool:
    changes = sorted((one for one in past if name in one.values), key=lambda one: one.at)
    for one, after in pairwise(changes):
        # A value that a CRM user replaced is not written to the CRM any more.
        until = after.at + (0 if after.reported else _DELAY_US)
        if not one.reported and same_value(one.values[name], value) and one.at - _CLOCK_US <= at <= until:
            return True
    if not changes or changes[-1].reported:
        return False
    current = changes[-1]
    return same_value(current.values[name], value) and current.at - _CLOCK_US <= at
