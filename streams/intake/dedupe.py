"""Stage 3 of 6: one effect per event.

An event is known by ``(tenant, event_id)`` alone: no producer's clock is trusted, a retried request may carry another
``occurred_at``. ``receipts`` remembers from which record each event was accepted. The same coordinates again are a
redelivery after a crash: what was decided is emitted again. Other coordinates are a duplicate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import NamedTuple

from streams.intake.event import Event


class Receipt(NamedTuple):
    """What intake decided about an event, and the record that it was."""

    topic: str
    partition: int
    offset: int
    lead_id: str
    version: int


class Sorted(NamedTuple):
    """A batch's events by what has to happen with them, each in the batch's order."""

    new: list[Event]
    redelivered: list[tuple[Event, Receipt]]
    duplicates: list[Event]


def event_key(tenant: str, event_id: str) -> str:
    """Return 32 hex digits that stand for the event; 128 bits, so two events never share it in practice."""
    return blake2b(f"{tenant}\0{event_id}".encode(), digest_size=16).hexdigest()


def dedupe(events: Iterable[Event], receipts: Mapping[str, Receipt]) -> Sorted:
    """Sort ``events`` by the ``receipts`` found for their keys; of several in one batch the first is new."""
    found = Sorted([], [], [])
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
