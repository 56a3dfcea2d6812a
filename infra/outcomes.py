"""The possible outcomes of a record, as values, with the one list of reason codes.

A reason has the same code in the header of a dead letter, the ``outcomes`` table, the label of a metric and tests.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why a record was not processed in the ordinary way: the codes are part of the public interface."""

    # dead: the record itself is invalid
    EMPTY = "empty"  # no value
    # the event is larger than LEADSTREAM_MAX_EVENT_BYTES, or the lead or a record about it would not fit its topic
    TOO_LARGE = "too_large"
    NOT_AVRO = "not_avro"  # neither JSON nor Avro in one of the two framings, or a truncated or corrupt Avro datum
    NOT_JSON = "not_json"  # starts with { and is not valid JSON
    UNKNOWN_SCHEMA = "unknown_schema"  # a fingerprint or schema id that is not in the registry
    UNKNOWN_EVENT_TYPE = "unknown_event_type"  # JSON whose "type" is no event type
    INVALID_FIELD = "invalid_field"  # one or more fields are missing, of a wrong type or out of bounds
    ABSURD_TIME = "absurd_time"  # occurred_at before 2000-01-01 or too far in the future
    NO_IDENTIFIER = "no_identifier"  # no identifier of a lead
    # another tenant's event, or one that only the pipeline may send, by a key or in a topic of a tenant that must not
    FORBIDDEN = "forbidden"
    EVENT_ID_REUSED = "event_id_reused"  # another event of the tenant has this event_id
    UNKNOWN_TENANT = "unknown_tenant"  # the installation is closed, and the tenant has no file
    TENANT_INVALID = "tenant_invalid"  # the tenant's file is invalid: replay the record when it is corrected
    SUPPRESSED = "suppressed"  # about an erased person, said before the erasure or without the person's new consent
    UNKNOWN_LEAD = "unknown_lead"  # the tenant has no lead with the id to merge or to split
    SAME_LEAD = "same_lead"  # the leads to merge are one already
    NOT_MERGED = "not_merged"  # the lead to split is not merged into the other one, or another split comes first
    # dead at a destination
    REJECTED = "rejected"  # the destination rejects it permanently
    EXPIRED = "expired"  # not delivered within its time limit, or too old for a campaign
    UNSURE = "unsure"  # it is unknown whether it was delivered, and a retry could deliver it twice
    # duplicate
    DUPLICATE_EVENT = "duplicate_event"  # (tenant, event_id) was accepted before from another record
    # parked: this key is retried later, other keys are not affected
    RATE_LIMITED = "rate_limited"
    UNAVAILABLE = "unavailable"
    TIMEOUT = "timeout"
    CONFLICT = "conflict"
    QUOTA = "quota"
    UNAUTHORIZED = "unauthorized"
    MISCONFIGURED = "misconfigured"  # the configuration of the destination has to be corrected
    # refused: an identity was not assigned to the lead of its event (see `leadstream leads review`)
    SHARED_IDENTITY = "shared_identity"  # it belongs to another identified lead, and people can share it
    IDENTITY_CAP = "identity_cap"  # the lead, or the leads merged, would have too many of its kind
    KEPT_APART = "kept_apart"  # it belongs to a lead that was split from this one
    # skipped on purpose
    NOT_FOUND = "not_found"  # the provider has no data on this lead
    NO_CONSENT = "no_consent"
    UP_TO_DATE = "up_to_date"  # the destination has this version or a newer one
    NO_ADDRESS = "no_address"  # the lead has no address for this channel
    ERASED = "erased"  # the lead was erased
    UNRENDERABLE = "unrenderable"  # the campaign's template fails with this lead's values
    SUPERSEDED = "superseded"  # a newer request about the same lead replaced it
    ALREADY_ASKED = "already_asked"  # at most one per lead, and an earlier event of the lead requested it


class What(StrEnum):
    """The kind of an outcome, as in the ``outcomes`` table and in ``leadstream trace``."""

    ACCEPTED = "accepted"  # recorded as a row of lead_events; intake publishes no outcome record for it
    DUPLICATE = "duplicate"
    DEAD = "dead"
    ENRICHED = "enriched"
    REFUSED = "refused"
    SKIPPED = "skipped"
    SYNCED = "synced"
    PARKED = "parked"
    TRIGGERED = "triggered"
    SENT = "sent"


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of a record: ``path``, such as ``/envelope/event_id``, and ``message``: what is wrong and its fix."""

    path: str
    message: str


@dataclass(frozen=True, slots=True)
class Dead:
    """The record can never be processed: it goes to ``leads.dead`` with its bytes unchanged.

    Guarantees: it is small, whatever the record holds: it has at most 20 problems, and a last one with the number of
    those that are left out; a path, which can hold names from the record, has at most 100 characters.
    """

    reason: Reason
    problems: tuple[Problem, ...] = ()

    def __post_init__(self) -> None:
        kept = [Problem(_shortened(p.path), p.message) for p in self.problems[:_MAX_PROBLEMS]]
        if more := len(self.problems) - len(kept):
            kept.append(Problem("", f"and {more} more"))
        object.__setattr__(self, "problems", tuple(kept))

    @property
    def detail(self) -> str:
        """All problems in one line, without values of the record, which may be personal data."""
        return "; ".join(f"{_path(p.path)}: {p.message}" if p.path else p.message for p in self.problems)


_MAX_PROBLEMS = 20
_MAX_PATH = 100  # characters


def _shortened(path: str) -> str:
    return path if len(path) <= _MAX_PATH else path[: _MAX_PATH - 1] + "…"


_PERSONAL = re.compile(r"@|\d\D*\d\D*\d\D*\d\D*\d\D*\d")


def _path(path: str) -> str:
    """Return ``path``, with * instead of a name that looks like an address or a number: it may be personal data."""
    field, *key = path[1:].split("/", 1)
    if key and not _PERSONAL.search(field):
        return f"/{field}/*" if _PERSONAL.search(key[0]) else path
    return "/*" if _PERSONAL.search(path) else path
