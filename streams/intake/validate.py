"""Stage 2 of 6: validate what an Avro schema cannot express. The event then has an id, a tenant, a time, an identity.

The rules are in :mod:`schemas.rules`; the HTTP API applies the same ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import orjson
from confluent_kafka import Message

from infra.kafka.received import tenant_of
from infra.outcomes import Dead, Problem, Reason
from infra.telemetry import HEADER
from infra.tenants import Tenants
from schemas import rules
from schemas.codec import Decoded
from schemas.identifiers import is_placeholder
from schemas.phones import is_one_digit, parse_phone
from schemas.registry import registry
from schemas.senders import Sender, forbidden
from streams.intake.event import ERASURE, Event, content_hash, event_key, lead_identities
from streams.intake.identity_policy import IdentityPolicy, Policies, default_policy

# Version, trace id, parent id, flags: 55 bytes. No version ff, no id of zeros.
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_WRONG_CLOCK_US = 60_000_000
_FIRST_RANK = 1000  # of the first source in a tenant's order: above every authority
_MILLISECOND_US = 999  # the broker's timestamp is cut off to milliseconds


def validate(
    decoded: Decoded, message: Message, now: int, max_ahead: int, policies: Policies = default_policy
) -> Event | Dead:
    """Validate a decoded record.

    Guarantees: the result depends on the record alone, so a redelivery has the same one: times are compared with the
    broker's time of the record, not with the clock of this worker.

    Args:
        decoded: of any type; only lead events are valid on this topic.
        message: the consumed message.
        now: current time in microseconds since 1970; used only if the record has no time of the broker.
        max_ahead: how far ``occurred_at`` may be ahead of the broker's time of the record, in microseconds.
        policies: the identity policy of each tenant.

    Returns:
        The event, or Dead with every problem.

    """
    kind = registry().events.get(decoded.type)
    if kind is None:
        problem = Problem("/type", f"{decoded.type} is not a lead event: only the pipeline writes it")
        return Dead(Reason.UNKNOWN_EVENT_TYPE, (problem,))
    record = decoded.record
    envelope, identifiers = record["envelope"], record["identifiers"]
    tenant, event_id = envelope["tenant"], envelope["event_id"]
    if (sender := _sender(message.topic())) is not None and (refused := forbidden(kind, envelope, sender)):
        return refused
    policy = policies(tenant)
    has_time, appended_at = message.timestamp()
    received_at = (appended_at if has_time else now // 1000) * 1000
    identities = tuple([(tenant, name, value) for name, value in policy.identify(identifiers)])
    latest = received_at + _MILLISECOND_US
    # Without one by the tenant's policy, the general rules say what is wrong, if they find something.
    properties = rules.check_event(kind, record, latest, max_ahead, policy.region, identified=bool(identities) or None)
    if isinstance(properties, Dead):
        return properties
    if kind.lead_ids:
        identities = lead_identities(kind, tenant, record)
    if not identities:
        problem = Problem("/identifiers", "each identifier is a placeholder of the tenant's file: it identifies nobody")
        return Dead(Reason.NO_IDENTIFIER, (problem,))
    headers = message.headers()
    return Event(
        kind,
        record,
        tenant,
        event_id,
        envelope["source"],
        envelope["occurred_at"],
        _time_for_precedence(kind.name, envelope["occurred_at"], received_at),
        event_key(tenant, event_id),
        content_hash(kind.name, envelope["source"], record),
        identities,
        _phone(identifiers["phone"], policy) if identifiers["phone"] and not kind.lead_ids else "",
        message.topic(),
        message.partition(),
        message.offset(),
        received_at,
        properties,
        orjson.dumps(context).decode() if (context := envelope["context"]) else "",
        message,
        traceparent(headers) if headers else None,
    )


def _phone(text: str, policy: IdentityPolicy) -> str:
    phone = parse_phone(text, policy.region)
    if phone.number:
        return "" if is_one_digit(phone) or phone.key in policy.placeholders else phone.number
    return "" if is_placeholder(text, policy.placeholders) else text.strip()  # a CRM user can still use it


def of_tenant(event: Event, tenants: Tenants) -> Event | Dead:
    """Return the event with the ranks of its tenant's order of sources, or Dead if the tenant is not served."""
    tenant = tenants.get(event.tenant)
    if tenant is None:
        return tenants.refusal(event.tenant) or event
    if not tenant.precedence:
        return event
    ranks = {
        name: _FIRST_RANK - sources.index(event.source)
        for name, sources in tenant.precedence.items()
        if event.source in sources
    }
    return event._replace(ranks=ranks) if ranks else event


@lru_cache(4096)
def _sender(topic: str) -> Sender | None:
    """Return who may write to a topic; None: the pipeline and trusted services, which may send everything."""
    tenant = tenant_of(topic)
    return Sender(tenant, frozenset(), f"the topic {topic}") if tenant else None


def _time_for_precedence(kind: str, occurred_at: int, received_at: int) -> int:
    """Return ``occurred_at``, but not after the broker's time of the record: a clock that is ahead gains nothing.

    A clock that is more than a minute ahead is wrong: when the event occurred is unknown. Its event counts as a minute
    old, so that it loses against everything that was said at about the same time. An erasure does not lose anything.
    """
    if kind != ERASURE and occurred_at > received_at + _WRONG_CLOCK_US:
        return received_at - _WRONG_CLOCK_US
    return min(occurred_at, received_at + _MILLISECOND_US)


def traceparent(headers: Sequence[tuple[str, bytes | None]]) -> bytes | None:
    """Return the last ``traceparent`` header if it is valid, else None.

    An invalid header is dropped, so that a sender cannot increase the size of the outputs with it.

    Source: W3C Trace Context, section 3.2.
    """
    found = dict(headers).get(HEADER)
    return found if found and _TRACEPARENT.fullmatch(found) else None
