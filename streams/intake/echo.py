"""Recognises a CRM's report of a value that it was sent: an echo. An echo does not change the lead.

A CRM reports each change of a record, also one that CRM sync wrote. If the lead has got another value since, the late
report of the earlier value would overwrite it with the authority of a CRM user. So a reported value is an echo if it
was the lead's value at the time of the report, or until shortly before it: a write takes some time to reach the CRM.

What is an echo depends on the versions that were published, so on the order in which the events were accepted. A value
counts from its decision to the decision about the next value, since CRM sync writes it then; and by the times of the
events, since a file of past events is decided long after they occurred.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from streams.intake.event import Event
from streams.intake.merge import field_of, same_value, values_of

_CLOCK_US = 5_000_000  # maximum difference between the clocks of a CRM and of a producer
_DELAY_US = 60_000_000  # for so long after a value was replaced, CRM sync may still have written it
_NEWEST = 100  # values of one field, so that a burst of changes costs little


class PastValues(NamedTuple):
    """The values that an event gave to a lead, by field; None: removed. Times are microseconds since 1970.

    ``lead_id``: the lead at that time, which may have been merged since. ``reported``: the event is a CRM's report.
    ``merging``: the event also merged other leads into this one.
    """

    lead_id: str
    at: int  # ``Event.at``
    decided_at: int
    values: Mapping[str, Any]
    reported: bool = False
    merging: bool = False


class _Value(NamedTuple):
    value: Any
    at: int
    decided_at: int
    reported: bool


class History:
    """The newest values of the fields of a lead, and of the leads that were merged into it.

    Args:
        past: each lead's changes in the order of its versions.

    """

    def __init__(self, past: Iterable[PastValues] = ()) -> None:
        self._fields: dict[str, dict[str, deque[_Value]]] = {}  # field -> lead -> values, in the order of versions
        self._merges: list[int] = []  # when another lead was merged into one of these
        for change in past:
            self.add(change)

    def add(self, change: PastValues) -> None:
        """Add the newest change of a lead."""
        if change.merging:
            self._merges.append(change.decided_at)
        for name, value in change.values.items():
            values = self._fields.setdefault(name, {}).setdefault(change.lead_id, deque(maxlen=_NEWEST))
            values.append(_Value(value, change.at, change.decided_at, change.reported))

    def echoes(self, event: Event, attributes: Mapping[str, Any]) -> Collection[str]:
        """Return the fields of a CRM's report that are echoes. ``attributes``: the current ones of the lead."""
        return [name for name, value in values_of(event) if self._is_echo(name, value, event.at, attributes)]

    def _is_echo(self, name: str, value: Any, at: int, attributes: Mapping[str, Any]) -> bool:
        current = same_value(field_of(attributes, name), value)
        for values in self._fields.get(name, {}).values():
            for one, after in pairwise((*values, None)):
                if one is not None and not one.reported and same_value(one.value, value):
                    at_end, decided_end = self._ends(one, after, current=current)
                    if one.at - _CLOCK_US <= at <= at_end or one.decided_at - _CLOCK_US <= at <= decided_end:
                        return True
        return False

    def _ends(self, one: _Value, after: _Value | None, *, current: bool) -> tuple[float, float]:
        """Return until when a report of ``one`` is an echo, by the times of the events and of the decisions."""
        if after is not None:
            # A value that a CRM user replaced is not written to the CRM any more.
            delay = 0 if after.reported else _DELAY_US
            return after.at + delay, after.decided_at + delay
        if current:
            return float("inf"), float("inf")
        # A merge gave the field another value.
        end = min((merge for merge in self._merges if merge >= one.decided_at), default=0) + _DELAY_US
        return end, end
