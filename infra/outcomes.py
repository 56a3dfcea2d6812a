"""What can become of a record: outcomes are values, and every reason is coded once, here.

A reason is the same word in the dead letter's header, in the ``outcomes`` table, in the metric's label and in tests.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why a record did not take the ordinary way."""

    # dead: the record itself is wrong
    EMPTY = "empty"  # no value
    TOO_LARGE = "too_large"  # more bytes than LEADSTREAM_MAX_EVENT_BYTES
    NOT_AVRO = "not_avro"  # neither Avro in one of the two framings nor JSON, or the Avro datum is cut or broken
    NOT_JSON = "not_json"  # starts with { but does not parse
    UNKNOWN_SCHEMA = "unknown_schema"  # fingerprint or schema id that the registry does not know
    UNKNOWN_EVENT_TYPE = "unknown_event_type"  # JSON whose "type" is no event type
    INVALID_FIELD = "invalid_field"  # one or more fields missing, of a wrong type or out of bounds
    ABSURD_TIME = "absurd_time"  # occurred_at before 2000-01-01 or too far in the future
    NO_IDENTIFIER = "no_identifier"  # nothing that says whose event it is
    # dead at a destination: it will never take this
    REJECTED = "rejected"
    EXPIRED = "expired"  # it could not be delivered for too long
    UNSURE = "unsure"  # it may or may not have been delivered, and again could mean twice
    # duplicate
    DUPLICATE_EVENT = "duplicate_event"  # (tenant, event_id) was accepted before from another record
    # parked: later, by key, alone
    RATE_LIMITED = "rate_limited"
    UNAVAILABLE = "unavailable"
    TIMEOUT = "timeout"
    CONFLICT = "conflict"
    QUOTA = "quota"
    UNAUTHORIZED = "unauthorized"
    MISCONFIGURED = "misconfigured"  # a person has to set something up at the destination first
    # skipped on purpose
    NOT_FOUND = "not_found"  # a provider knows nothing of this lead
    NO_CONSENT = "no_consent"
    UP_TO_DATE = "up_to_date"  # the destination has this version or a newer one
    NO_ADDRESS = "no_address"  # the lead has none for this channel
    ERASED = "erased"  # the lead is gone
    UNRENDERABLE = "unrenderable"  # the campaign's template does not take this lead's values
    ALREADY_ASKED = "already_asked"  # once per lead, and an earlier event of the lead has asked


class What(StrEnum):
    """The verb of an outcome, as the ``outcomes`` table and ``leadstream trace`` say it."""

    ACCEPTED = "accepted"  # said by the row in lead_events, never written to leads.outcomes by intake
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
    """One wrong thing in a record: ``path`` such as ``/envelope/event_id``, ``message`` for the producer to mend it."""

    path: str
    message: str


@dataclass(frozen=True, slots=True)
class Dead:
    """The record can never be taken: it goes to ``leads.dead`` with its bytes as they came."""

    reason: Reason
    problems: tuple[Problem, ...] = ()

    @property
    def detail(self) -> str:
        """All problems in one line, without any value of the record (values may be personal data)."""
        return "; ".join(f"{_path(p.path)}: {p.message}" if p.path else p.message for p in self.problems)


_PERSONAL = re.compile(r"@|\d\D*\d\D*\d\D*\d\D*\d\D*\d")


def _path(path: str) -> str:
    """Return ``path``, with * for the key of a map that looks like an address or a number: the producer chose it."""
    field, *key = path[1:].split("/", 1)
    return f"/{field}/*" if key and _PERSONAL.search(key[0]) else path
