"""The outcomes of a record: outcomes are values, and every reason is coded once, here.

A reason is the same word in a dead letter's header, in the ``outcomes`` table, in a metric's label and in tests.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why a record was not processed in the ordinary way."""

    # dead: the record itself is invalid
    EMPTY = "empty"  # no value
    # the event is larger than LEADSTREAM_MAX_EVENT_BYTES, or the lead or a record about it would not fit its topic
    TOO_LARGE = "too_large"
    NOT_AVRO = "not_avro"  # neither Avro in one of the two framings nor JSON, or a truncated or corrupt Avro datum
    NOT_JSON = "not_json"  # starts with { and is not valid JSON
    UNKNOWN_SCHEMA = "unknown_schema"  # a fingerprint or schema id that is not in the registry
    UNKNOWN_EVENT_TYPE = "unknown_event_type"  # JSON whose "type" is no event type
    INVALID_FIELD = "invalid_field"  # one or more fields are missing, of a wrong type or out of bounds
    ABSURD_TIME = "absurd_time"  # occurred_at before 2000-01-01 or too far in the future
    NO_IDENTIFIER = "no_identifier"  # no identifier of a lead
    # dead at a destination
    REJECTED = "rejected"  # refused permanently
    EXPIRED = "expired"  # not delivered within its time limit
    UNSURE = "unsure"  # it may or may not have been delivered, and a retry could deliver it twice
    # duplicate
    DUPLICATE_EVENT = "duplicate_event"  # (tenant, event_id) was accepted before from another record
    # parked: retried later, this key alone
    RATE_LIMITED = "rate_limited"
    UNAVAILABLE = "unavailable"
    TIMEOUT = "timeout"
    CONFLICT = "conflict"
    QUOTA = "quota"
    UNAUTHORIZED = "unauthorized"
    MISCONFIGURED = "misconfigured"  # the destination needs a change of its configuration
    # skipped on purpose
    NOT_FOUND = "not_found"  # the provider has no data on this lead
    NO_CONSENT = "no_consent"
    UP_TO_DATE = "up_to_date"  # the destination has this version or a newer one
    NO_ADDRESS = "no_address"  # the lead has no address for this channel
    ERASED = "erased"  # the lead was erased
    UNRENDERABLE = "unrenderable"  # the campaign's template fails with this lead's values
    ALREADY_ASKED = "already_asked"  # once per lead, and an earlier event of the lead requested it


class What(StrEnum):
    """The verb of an outcome, as in the ``outcomes`` table and in ``leadstream trace``."""

    ACCEPTED = "accepted"  # the row in lead_events is this outcome; intake writes none to leads.outcomes
    DUPLICATE = "duplicate"
    DEAD = "dead"
    ENRICHED = "enriched"
    SKIPPED = "skipped"
    SYNCED = "synced"
    PARKED = "parked"
    TRIGGERED = "triggered"
    SENT = "sent"


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of a record: ``path`` such as ``/envelope/event_id``; ``message`` has what is wrong and its fix."""

    path: str
    message: str


@dataclass(frozen=True, slots=True)
class Dead:
    """The record can never be processed: it goes to ``leads.dead`` with its bytes unchanged."""

    reason: Reason
    problems: tuple[Problem, ...] = ()

    @property
    def detail(self) -> str:
        """All problems in one line, without a value of the record (values may be personal data)."""
        return "; ".join(f"{_path(p.path)}: {p.message}" if p.path else p.message for p in self.problems)


_PERSONAL = re.compile(r"@|\d\D*\d\D*\d\D*\d\D*\d\D*\d")


def _path(path: str) -> str:
    """Return ``path``, with * for the key of a map that looks like an address or a number: the producer chose it."""
    field, *key = path[1:].split("/", 1)
    return f"/{field}/*" if key and _PERSONAL.search(key[0]) else path
