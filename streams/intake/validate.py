"""Stage 2 of 6: what a type cannot say. Afterwards the event has an id, a tenant, a time and an identifier."""

from __future__ import annotations

from confluent_kafka import Message

from infra.outcomes import Dead, Problem, Reason
from schemas import rules
from schemas.codec import Decoded
from schemas.registry import registry
from streams.intake.dedupe import event_key
from streams.intake.event import Event
from streams.intake.identity import identities


def validate(decoded: Decoded, message: Message, now: int, max_ahead: int) -> Event | Dead:
    """Check ``decoded`` against the rules; ``now`` and ``max_ahead`` are microseconds. Dead names every wrong field."""
    kind = registry().events.get(decoded.type)
    if kind is None:
        problem = Problem("/type", f"{decoded.type} is written by the pipeline, it is not a lead event")
        return Dead(Reason.UNKNOWN_EVENT_TYPE, (problem,))
    record = decoded.record
    properties = rules.check_event(kind, record, now, max_ahead)
    if isinstance(properties, Dead):
        return properties
    envelope = record["envelope"]
    tenant, event_id = envelope["tenant"], envelope["event_id"]
    headers = message.headers()
    return Event(
        kind,
        record,
        tenant,
        event_id,
        envelope["source"],
        envelope["occurred_at"],
        event_key(tenant, event_id),
        identities(tenant, record["identifiers"]),
        message.topic(),
        message.partition(),
        message.offset(),
        message.timestamp()[1] * 1000,
        properties,
        message,
        dict(headers).get("traceparent") if headers else None,
    )
