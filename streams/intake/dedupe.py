"""Stage 3 of 6: one effect per event.

The identity of an event is ``(tenant, event_id)`` alone: a retried request may have another ``occurred_at``.
``receipts`` stores from which record each event was accepted. The same coordinates are a redelivery after a crash: the
decision is published again. Other coordinates are a duplicate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from streams.intake.event import Event


class Receipt(NamedTuple):
    """An accepted event: the record that it came in, and the version of the lead that it made."""

    topic: str
    partition: int
    offset: int
    lead_id: str
    version: int


class Deduplicated(NamedTuple):
    """The events of a batch by how they are processed, each list in the order of the batch."""

    new: list[Event]
    redelivered: list[tuple[Event, Receipt]]
    duplicates: list[Event]


def dedupe(events: Iterable[Event], receipts: Mapping[str, Receipt]) -> Deduplicated:
    """Sort ``events`` by the ``receipts`` of their keys; of several with one key in a batch the first is new."""
    found = Deduplicated([], [], [])
    seen: set[str] = set()
    for event in events:
        receipt = receipts.get(event.key)
        if receipt is not None:
            if receipt[:3] == (event.topic, event.partition, event.offset):
                found.redelivered.append((event, receipt))
            else:
                found.duplicates.append(event)
        elif event.key in seen:
            found.duplicates.append(event)
        else:
            seen.add(event.key)
            found.new.append(event)
    return found
