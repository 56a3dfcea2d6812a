"""Made-up people and their events, for tests: example domains only."""

from __future__ import annotations

from typing import Any

from confluent_kafka import Message

from schemas.codec import Codec
from schemas.registry import registry
from streams.intake.event import Event
from streams.intake.validate import validate

CODEC = Codec()
NOW = 1_770_000_000_000_000  # 2026-02-02 in microseconds
HOUR = 3_600_000_000


def record(kind: str, event_id: str = "e-1", *, at: int = NOW, tenant: str = "acme", **own: Any) -> dict[str, Any]:
    """Return a full record of an event type; identifiers are those given by name, other names are own fields."""
    names = ("external_id", "email", "phone", "anonymous_id")
    identifiers: dict[str, Any] = {name: own.pop(name, "") for name in names}
    identifiers["crm_ids"] = own.pop("crm_ids", {})
    envelope = {"event_id": event_id, "tenant": tenant, "occurred_at": at, "source": own.pop("source", "web")}
    fields = registry().events[kind].source["fields"][2:]
    return {
        "envelope": envelope | {"context": {}},
        "identifiers": identifiers,
        **{field["name"]: own.pop(field["name"], field.get("default")) for field in fields},
        **own,
    }


def payload(kind: str, event_id: str = "e-1", **own: Any) -> bytes:
    """Return an event in single-object encoding."""
    return CODEC.encoder(kind)(record(kind, event_id, **own))


def message(
    value: bytes | None, *, offset: int = 0, partition: int = 0, topic: str = "leads.received", at: int = NOW
) -> Message:
    """Return a Kafka message as a consumer would; ``at``: the broker's time, in microseconds."""
    return Message(topic, partition, offset, None, value, None, None, (2, at // 1000))


def event(kind: str, event_id: str = "e-1", *, offset: int = 0, partition: int = 0, **own: Any) -> Event:
    """Return a valid event as intake's later stages see it."""
    made = message(payload(kind, event_id, **own), offset=offset, partition=partition)
    found = validate(CODEC.decode(made.value()), made, NOW, HOUR)
    assert isinstance(found, Event), found
    return found
