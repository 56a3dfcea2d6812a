"""A valid lead event as it passes through intake, with its key and its identities.

Every stage uses this module, so that no stage imports a later one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, NamedTuple
from zlib import crc32

import orjson
from confluent_kafka import Message

from infra.kafka.dead_letters import Origin
from infra.outcomes import Dead
from schemas.blanks import is_blank
from schemas.registry import EventType
from schemas.senders import OWN_SOURCE

Identity = tuple[str, str, str]  # tenant, kind, normal form: from schemas.identifiers
Coordinates = tuple[str, int, int]  # topic, partition, offset

# In JSON, a member that may have no value: empty, or a text that begins with a space, an escape or beyond ASCII. It is
# searched for because nearly no event has one, and a check of each text would take longer than the hash.
_MAY_BE_BLANK = re.compile(rb':(?:"[" \\\x7f-\xff]|null|\[\]|\{\})')

ERASURE = "lead_erased"  # the event type that removes what was said before
# Commands: event types that name leads instead of people, of which each event is decided alone.
MERGE, SPLIT = "leads_merged", "lead_split"
LEAD = "lead"  # the kind of identity of a lead's id: it belongs to the lead itself and is not stored


class Event(NamedTuple):
    """A valid lead event. Times are microseconds since 1970, UTC."""

    type: EventType
    record: dict[str, Any]
    tenant: str
    event_id: str
    source: str
    occurred_at: int
    at: int  # the time for precedence: occurred_at, but not after received_at
    key: str  # from event_key()
    content: int  # from content_hash()
    identities: tuple[Identity, ...]  # of its identifiers that identify somebody; at least one
    phone: str  # the number with its country code; or the text that was sent, if it is no number; "": none
    topic: str
    partition: int
    offset: int
    received_at: int
    properties: bytes  # the record without its envelope, as JSON
    context: str  # envelope.context as JSON, or "" if it is empty
    message: Message  # the consumed message, for a dead letter
    traceparent: bytes | None = None  # a valid W3C traceparent
    ranks: Mapping[str, int] | None = None  # field -> rank by the tenant's order of sources, instead of the authority's

    @property
    def own(self) -> bool:
        """Whether the pipeline made the event, such as an enrichment result."""
        return self.source.startswith(OWN_SOURCE)

    @property
    def coordinates(self) -> Coordinates:
        """Topic, partition and offset of the record that contained the event."""
        return self.topic, self.partition, self.offset

    def without_content(self) -> Event:
        """Return the event without what was said: no own fields, no context. Its ids and times stay."""
        envelope = {**self.record["envelope"], "context": {}}
        return self._replace(properties=b"{}", context="", record={"envelope": envelope})


class DeadRecord(NamedTuple):
    """A record that is not accepted, and why. ``origin``: read from the record, or None if it was not decoded."""

    message: Message
    dead: Dead
    origin: Origin | None


@dataclass(frozen=True, slots=True)
class EventBatch:
    """A batch after decoding and validation: its valid events, and all other records."""

    events: list[Event] = field(default_factory=list)
    dead: list[DeadRecord] = field(default_factory=list)


def lead_identities(kind: EventType, tenant: str, record: Mapping[str, Any]) -> tuple[Identity, ...]:
    """Return the identities of a command: the leads that it names."""
    return tuple((tenant, LEAD, record[name].lower()) for name in kind.lead_ids)


def event_key(tenant: str, event_id: str) -> str:
    """Return the key of an event in ``receipts``: a 128-bit hash of tenant and event_id, as 32 hexadecimal digits."""
    return blake2b(f"{tenant}\0{event_id}".encode(), digest_size=16).hexdigest()


def content_hash(kind: str, source: str, record: Mapping[str, Any]) -> int:
    """Return a hash of an event's content, as a signed 32-bit integer: its type, its source, its fields with a value.

    ``occurred_at`` and ``context`` are left out, because a sender may repeat an event with others. Fields without a
    value are left out, so that the hash stays the same when a later version of the schema adds one. So are blank texts,
    in maps too: absent, empty and white space say the same.
    """
    content = {name: value for name, value in record.items() if value}
    del content["envelope"]
    content["identifiers"] = {name: value for name, value in record["identifiers"].items() if value}
    text = orjson.dumps((kind, source, content), option=orjson.OPT_SORT_KEYS)
    if _MAY_BE_BLANK.search(text):
        text = orjson.dumps((kind, source, _with_values(content)), option=orjson.OPT_SORT_KEYS)
    return crc32(text) - (1 << 31)


def _with_values(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``content`` without blank texts and fields without a value, at every level."""
    found = {name: _with_values(value) if isinstance(value, dict) else value for name, value in content.items()}
    return {name: value for name, value in found.items() if value and not (isinstance(value, str) and is_blank(value))}
