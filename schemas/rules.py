"""Validates a lead event by the rules that an Avro schema cannot express.

Nearly every event is valid, so validation has two paths. The fast path accepts most valid events in about 2 µs. Events
that it does not accept are checked field by field, and every problem is reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from math import isfinite
from typing import Any

import orjson

from infra.outcomes import Dead, Problem, Reason
from schemas.addresses import normal_email
from schemas.blanks import is_blank
from schemas.cleared import CLEARED, problems_of_cleared
from schemas.identifiers import normal_identifiers
from schemas.phones import parse_phone
from schemas.registry import EventType

EARLIEST = 946_684_800_000_000  # 2000-01-01 in microseconds
_TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_EVENT_ID = re.compile(r"[!-~][ -~]{0,199}")
_UUID = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_MAX_ID = 200  # characters
_MAX_TENANT = 63  # characters
_MAX_STRING = 8192  # characters
_MAX_KEYS = 200  # of one map
_NO_IDENTIFIER = "no identifier of a person: provide one of external_id, email, phone, anonymous_id, crm_ids"


def check_event(
    kind: EventType,
    record: dict[str, Any],
    now: int,
    max_ahead: int,
    region: str = "",
    *,
    identified: bool | None = None,
) -> bytes | Dead:
    """Validate a decoded event.

    Args:
        kind: the event's type.
        record: the event, with every field of ``kind``.
        now: current time in microseconds since 1970.
        max_ahead: how far ``occurred_at`` may be ahead of ``now``, in microseconds.
        region: the country of phone numbers without a country code, as two letters; "": they identify nobody.
        identified: whether the event has an identifier of somebody; None: to be found out.

    Returns:
        The event without its envelope as JSON, or Dead with every problem. The reason of Dead is the first that
        applies of: invalid field, no identifier, absurd time.

    """
    body = dict(record)
    envelope = body.pop("envelope")
    body_json = orjson.dumps(body)
    if identified is None:
        identified = next(normal_identifiers(record["identifiers"], region), None) is not None
    in_time = EARLIEST <= envelope["occurred_at"] <= now + max_ahead
    if in_time and identified and _passes_fast_path(kind, envelope, body, body_json):
        return body_json
    problems = [*_envelope(envelope), *_identifiers(record["identifiers"]), *_values(kind, record)]
    reasons = [Reason.INVALID_FIELD] if problems else []
    if not identified and not kind.lead_ids:
        reasons.append(Reason.NO_IDENTIFIER)
        problems.append(Problem("/identifiers", _NO_IDENTIFIER + _hint(record["identifiers"], region)))
    if not in_time:
        reasons.append(Reason.ABSURD_TIME)
        bounds = f"must be after 2000-01-01 and at most {max_ahead // 1_000_000} s in the future"
        problems.append(Problem("/envelope/occurred_at", f"{bounds}: check the clock; a number is in microseconds"))
    return Dead(reasons[0], tuple(problems)) if reasons else body_json


def _passes_fast_path(kind: EventType, envelope: dict[str, Any], body: dict[str, Any], body_json: bytes) -> bool:
    """Return True only if the event is valid; False if it must be checked field by field."""
    identifiers = body["identifiers"]
    email, phone = identifiers["email"], identifiers["phone"]
    external_id, anonymous_id = identifiers["external_id"], identifiers["anonymous_id"]
    if (
        len(body_json) > _MAX_STRING  # otherwise no string in it is too long
        or rb"\u0000" in body_json
        or identifiers["crm_ids"]
        or (email and not normal_email(email))
        or len(phone) > _MAX_ID
        or len(external_id) > _MAX_ID
        or len(anonymous_id) > _MAX_ID
        or phone.isspace()
        or external_id.isspace()
        or anonymous_id.isspace()
        or not _EVENT_ID.fullmatch(envelope["event_id"])
        or not _is_tenant(envelope["tenant"])
        or not _is_short_text(envelope["source"])
        or not _is_valid_map(envelope["context"])
    ):
        return False
    if kind.lead_ids or (kind.lists and any(body[name] for name in kind.lists)):
        return False
    return (
        all(_is_valid_map(body[name]) for name in kind.maps)
        and all(_is_key(body[key]) for key, _ in kind.lead_maps.values())
        and all(isfinite(body[name] or 0) for name in kind.numbers)
        and all(body[name] in allowed for name, allowed in kind.enums.items())
    )


def _is_tenant(tenant: str) -> bool:
    return len(tenant) <= _MAX_TENANT and _matches_tenant(tenant)  # the cache must not keep long texts


@lru_cache(4096)
def _matches_tenant(tenant: str) -> bool:
    return _TENANT.fullmatch(tenant) is not None


def _is_valid_map(value: dict[str, Any]) -> bool:
    if len(value) > _MAX_KEYS:
        return False
    for key, item in value.items():
        if not 0 < len(key) <= _MAX_ID or "\0" in key:
            return False
        if type(item) is str and (len(item) > _MAX_STRING or "\0" in item):
            return False
    return True


def _hint(identifiers: dict[str, Any], region: str) -> str:
    """Return why the identifiers of an event that has some identify nobody."""
    if (phone := identifiers["phone"]) and not parse_phone(phone, region).number:
        return "; the phone number is not a possible one with its country code, such as +44 20 7183 8750"
    if any(identifiers.values()):
        return "; what there is stands for no value, such as null, undefined, zeros or test@test.com"
    return ""


def _envelope(envelope: dict[str, Any]) -> Iterator[Problem]:
    if not _TENANT.fullmatch(envelope["tenant"]):
        yield Problem("/envelope/tenant", "must be 1 to 63 of a-z, 0-9, - and _, and start with a letter or digit")
    if not _EVENT_ID.fullmatch(envelope["event_id"]):
        message = f"must be 1 to {_MAX_ID} printable ASCII characters and must not start with a space"
        yield Problem("/envelope/event_id", message)
    if not _is_short_text(envelope["source"]):
        yield Problem("/envelope/source", f"must be 1 to {_MAX_ID} characters without NUL")


def _identifiers(identifiers: dict[str, Any]) -> Iterator[Problem]:
    email = identifiers["email"]
    if email and not normal_email(email):
        yield Problem("/identifiers/email", "must be an e-mail address in the form name@domain")
    for name in ("external_id", "anonymous_id", "phone"):
        if len(identifiers[name]) > _MAX_ID:
            yield Problem(f"/identifiers/{name}", f"must not be longer than {_MAX_ID} characters")
        elif identifiers[name] and not identifiers[name].strip():
            yield Problem(f"/identifiers/{name}", "must not be blank: leave it out or send a value")
    for crm, value in identifiers["crm_ids"].items():
        if not _is_short_text(value) or not _is_short_text(crm) or value.isspace():
            message = f"each key and each value must be 1 to {_MAX_ID} characters without NUL, and not blank"
            yield Problem("/identifiers/crm_ids", message)


def _values(kind: EventType, record: dict[str, Any]) -> Iterator[Problem]:
    for name, value in record.items():
        if name != "envelope":
            yield from _value(f"/{name}", value)
    yield from _map("/envelope/context", record["envelope"]["context"])
    for name, _ in kind.lead_maps.values():
        if not _is_key(record[name]):
            yield Problem(f"/{name}", f"must be 1 to {_MAX_ID} characters without NUL, and not blank")
    if record.get(CLEARED):
        yield from problems_of_cleared(kind, record)
    if kind.lead_ids:
        yield from _lead_ids(kind, record)
    for name, allowed in kind.enums.items():
        if record[name] not in allowed:
            yield Problem(f"/{name}", f"must be one of {', '.join(allowed)}")


def _lead_ids(kind: EventType, record: dict[str, Any]) -> Iterator[Problem]:
    for name in kind.lead_ids:
        if not _UUID.fullmatch(record[name]):
            yield Problem(f"/{name}", "must be the id of a lead, such as 019c1a2b-0000-7000-8000-000000000001")
    if len({record[name].lower() for name in kind.lead_ids}) < len(kind.lead_ids):
        yield Problem(f"/{kind.lead_ids[-1]}", "must be another lead: this event needs two different ones")


def _value(path: str, value: Any) -> Iterator[Problem]:
    if type(value) is str:
        if len(value) > _MAX_STRING:
            yield Problem(path, f"must not be longer than {_MAX_STRING} characters")
        elif "\0" in value:
            yield Problem(path, "must not contain a NUL character")
    elif type(value) is float and not isfinite(value):
        yield Problem(path, "must be a finite number")
    elif type(value) is list:
        yield from _list(path, value)
    elif type(value) is dict:
        yield from _map(path, value)


def _map(path: str, value: dict[str, Any]) -> Iterator[Problem]:
    if len(value) > _MAX_KEYS:
        yield Problem(path, f"must not have more than {_MAX_KEYS} keys")
        return
    for key, item in value.items():
        if type(item) is str and ("\0" in item or len(item) > _MAX_STRING):
            yield Problem(f"{path}/{key}", f"must be at most {_MAX_STRING} characters without NUL")
        if not _is_short_text(key):
            yield Problem(path, f"each key must be 1 to {_MAX_ID} characters without NUL")


def _list(path: str, values: list[Any]) -> Iterator[Problem]:
    if len(values) > _MAX_KEYS:
        yield Problem(path, f"must not have more than {_MAX_KEYS} items")
        return
    for index, item in enumerate(values):
        if type(item) is str and ("\0" in item or len(item) > _MAX_STRING):
            yield Problem(f"{path}/{index}", f"must be at most {_MAX_STRING} characters without NUL")


def _is_key(text: str) -> bool:
    """Return whether a field can be a key of a map of the lead."""
    return _is_short_text(text) and not is_blank(text)


def _is_short_text(text: str) -> bool:
    return 0 < len(text) <= _MAX_ID and "\0" not in text
