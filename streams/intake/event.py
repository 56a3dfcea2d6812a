"""What flows through intake: one decoded lead event with where it came from."""

from __future__ import annotations

from typing import Any, NamedTuple

from confluent_kafka import Message

from schemas.registry import EventType

Identity = tuple[str, str, str]  # tenant, kind, normalised value

OWN_SOURCE = "leadstream:"  # sources of events that the pipeline makes itself


class Event(NamedTuple):
    """A valid lead event. Times are microseconds since 1970, UTC."""

    type: EventType
    record: dict[str, Any]
    tenant: str
    event_id: str
    source: str
    occurred_at: int
    key: str  # 32 hex digits: hash of tenant and event_id
    identities: tuple[Identity, ...]
    topic: str
    partition: int
    offset: int
    received_at: int
    properties: bytes  # the record without its envelope, as JSON
    message: Message  # as it came, should it turn out to be dead
    traceparent: bytes | None = None

    @property
    def own(self) -> bool:
        """Whether the pipeline made it (an enrichment result), and not somebody upstream."""
        return self.source.startswith(OWN_SOURCE)
