"""Stage 2 of 6: validates the rules that an Avro schema cannot express.

Afterwards the event has an id, a tenant, a time and an identifier.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from confluent_kafka import Message

from infra.outcomes import Dead, Problem, Reason
from infra.telemetry import HEADER
from schemas import rules
from schemas.codec import Decoded
from schemas.registry import registry
from streams.intake.event import Event, event_key, identities

# Version, trace id, parent id, flags: 55 bytes. No version ff, no id of zeros.
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


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
        traceparent(headers) if headers else None,
    )


def traceparent(headers: Sequence[tuple[str, bytes | None]]) -> bytes | None:
    """Return the last ``traceparent`` of ``headers`` where it is valid, else None: any other is dropped.

    So that no output's size depends on a header that its sender chose. Source: W3C Trace Context, section 3.2.
    """
    found = dict(headers).get(HEADER)
    return found if found and _TRACEPARENT.fullmatch(found) else None
