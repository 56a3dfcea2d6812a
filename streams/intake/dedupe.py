"""Stage 3 of 6: find duplicates and redeliveries, so that each event has one effect.

An event is identified by ``(tenant, event_id)`` alone: a sender may repeat a request with another ``occurred_at``. The
table ``receipts`` has the coordinates (topic, partition, offset) of the record from which each event was accepted. An
event that comes with the same coordinates is a redelivery after a crash: its decision is published again. With other
coordinates it is a duplicate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from streams.intake.event import Event


class Receipt(NamedTuple):
    """The receipt of an accepted event: the coordinates of its record, and the version of the lead that it made."""

    topic: str
    partition: int
    offset: int
    lead_id: str
    version: int


class Deduplicated(NamedTuple):
    """The events of a batch in three groups, each in the order of the batch."""

    new: list[Event]
    redelivered: list[tuple[Event, Receipt]]
    duplicates: list[Event]


def dedupe(events: Iterable[Event], receipts: Mapping[str, Receipt]) -> Deduplicated:
    """Group ``events`` by their ``receipts``, which are by event key.

    If several events without a receipt have the same key, the first is new and the others are duplicates.
    """
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
