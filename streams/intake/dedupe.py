"""Stage 3 of 6: find duplicates and redeliveries, so that each event has one effect.

An event is identified by ``(tenant, event_id)``: a sender may repeat a request with another ``occurred_at`` or
``context``. The table ``receipts`` has the coordinates (topic, partition, offset) of the record from which each event
was accepted, and a hash of its content. An event that comes with the same coordinates is a redelivery after a crash:
its decision is published again. With other coordinates it is a duplicate if it has the same content. Another content
means that the sender used the id for two events: the second one is dead, so that it is not lost silently.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from streams.intake.event import Coordinates, Event


class Receipt(NamedTuple):
    """The receipt of an accepted event: the coordinates of its record, and the version of the lead that it made.

    ``content``: its content hash; None if it was accepted before these hashes were stored.
    """

    topic: str
    partition: int
    offset: int
    lead_id: str
    version: int
    content: int | None = None

    @property
    def coordinates(self) -> Coordinates:
        """Topic, partition and offset of the record that contained the event."""
        return self.topic, self.partition, self.offset


class Reused(NamedTuple):
    """An event whose id was used before, by another event at the coordinates ``first``."""

    event: Event
    first: Coordinates


class Deduplicated(NamedTuple):
    """The events of a batch in four groups, each in the order of the batch."""

    new: list[Event]
    redelivered: list[tuple[Event, Receipt]]
    duplicates: list[Event]
    reused: list[Reused]


def dedupe(events: Iterable[Event], receipts: Mapping[str, Receipt]) -> Deduplicated:
    """Group ``events`` by their ``receipts``, which are by event key.

    If several events without a receipt have the same key, the first is new, and the others count as if it had one.
    """
    found = Deduplicated([], [], [], [])
    seen: dict[str, Event] = {}
    for event in events:
        receipt = receipts.get(event.key)
        if receipt is not None and receipt.coordinates == event.coordinates:
            found.redelivered.append((event, receipt))
            continue
        first = receipt or seen.get(event.key)
        if first is None:
            seen[event.key] = event
            found.new.append(event)
        # The pipeline's own events repeat a question's id: the answer may be published again with a newer lead.
        elif first.content is None or first.content == event.content or event.own:
            found.duplicates.append(event)
        else:
            found.reused.append(Reused(event, first.coordinates))
    return found
