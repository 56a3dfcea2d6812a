"""The rules of a lead event that its Avro type cannot say.

Nearly every event is good, so there are two ways through them: a quick look at the whole that is sure of most good
events in about two microseconds, and where it is not, a look at each field that names all that is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from math import isfinite
from typing import Any

import orjson
import phonenumbers

from infra.outcomes import Dead, Problem, Reason
from schemas.addresses import normal_email
from schemas.registry import EventType

EARLIEST = 946_684_800_000_000  # 2000-01-01 in microseconds
_TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_EVENT_ID = re.compile(r"[!-~][ -~]{0,199}")
_MAX_ID = 200
_MAX_STRING = 8192
_MAX_KEYS = 200


def check_event(kind: EventType, record: dict[str, Any], now: int, max_ahead: int) -> bytes | Dead:
    """Return the event without its envelope, as JSON, where all is well, else Dead with every problem.

    ``now`` and ``max_ahead`` are microseconds. The reason is that of the gravest problem: a wrong field, then no
    identifier, then an absurd time.
    """
    own = dict(record)
    envelope = own.pop("envelope")
    told = orjson.dumps(own)
    in_time = EARLIEST <= envelope["occurred_at"] <= now + max_ahead
    if in_time and _is_surely_good(kind, envelope, own, told):
        return told
    problems = [*_envelope(envelope), *_identifiers(record["identifiers"]), *_sizes(kind, record)]
    reasons = [Reason.INVALID_FIELD] if problems else []
    if not _says_of_somebody(record["identifiers"]):
        reasons.append(Reason.NO_IDENTIFIER)
        hint = "; a phone number needs its country code (+44...)" if record["identifiers"]["phone"] else ""
        problem = "says of nobody; give one of external_id, email, phone, anonymous_id, crm_ids"
        problems.append(Problem("/identifiers", problem + hint))
    if not in_time:
        reasons.append(Reason.ABSURD_TIME)
        problems.append(
            Problem("/envelope/occurred_at", "is before 2000-01-01 or too far in the future; microseconds?")
        )
    return Dead(reasons[0], tuple(problems)) if reasons else told


def _is_surely_good(kind: EventType, envelope: dict[str, Any], own: dict[str, Any], told: bytes) -> bool:
    """Whether the whole shows that no rule is broken; False says nothing. ``told`` is ``own`` as JSON."""
    identifiers = own["identifiers"]
    email, phone = identifiers["email"], identifiers["phone"]
    external_id, anonymous_id = identifiers["external_id"], identifiers["anonymous_id"]
    if (
        len(told) > _MAX_STRING  # else no string in it is too long
        or rb"\u0000" in told
        or identifiers["crm_ids"]
        or not (email or external_id or anonymous_id or e164(phone))
        or (email and not normal_email(email))
        or len(phone) > _MAX_ID
        or len(external_id) > _MAX_ID
        or len(anonymous_id) > _MAX_ID
        or phone.isspace()
        or external_id.isspace()
        or anonymous_id.isspace()
        or not _EVENT_ID.fullmatch(envelope["event_id"])
        or not _is_tenant(envelope["tenant"])
        or not _is_word(envelope["source"])
        or not _is_good_map(envelope["context"])
    ):
        return False
    return (
        all(_is_good_map(own[name]) for name in kind.maps)
        and all(isfinite(own[name] or 0) for name in kind.numbers)
        and all(own[name] in words for name, words in kind.enums.items())
    )


@lru_cache(4096)
def _is_tenant(tenant: str) -> bool:
    return _TENANT.fullmatch(tenant) is not None


def _is_good_map(value: dict[str, Any]) -> bool:
    if len(value) > _MAX_KEYS:
        return False
    for key, item in value.items():
        if not 0 < len(key) <= _MAX_ID or "\0" in key:
            return False
        if type(item) is str and (len(item) > _MAX_STRING or "\0" in item):
            return False
    return True


def _says_of_somebody(identifiers: dict[str, Any]) -> bool:
    """Whether somebody can be found by them: a phone number that cannot be made E.164 is told, but finds nobody."""
    others = (value for name, value in identifiers.items() if name != "phone")
    return any(others) or bool(e164(identifiers["phone"]))


@lru_cache(maxsize=65_536)
def e164(phone: str) -> str:
    """Return ``phone`` in E.164, or "" where it is no possible number with a country code."""
    try:
        number = phonenumbers.parse(phone, None)
    except phonenumbers.NumberParseException:
        return ""
    if not phonenumbers.is_possible_number(number):
        return ""
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


def _envelope(envelope: dict[str, Any]) -> Iterator[Problem]:
    if not _TENANT.fullmatch(envelope["tenant"]):
        yield Problem("/envelope/tenant", "has to be 1 to 63 of a-z, 0-9, - and _, beginning with a letter or digit")
    if not _EVENT_ID.fullmatch(envelope["event_id"]):
        yield Problem("/envelope/event_id", f"has to be 1 to {_MAX_ID} printable ASCII characters")
    if not _is_word(envelope["source"]):
        yield Problem("/envelope/source", f"has to be 1 to {_MAX_ID} characters, none of them NUL")


def _identifiers(identifiers: dict[str, Any]) -> Iterator[Problem]:
    email = identifiers["email"]
    if email and not normal_email(email):
        yield Problem("/identifiers/email", "is no e-mail address; send one such as ada@example.com")
    for name in ("external_id", "anonymous_id", "phone"):
        if len(identifiers[name]) > _MAX_ID:
            yield Problem(f"/identifiers/{name}", f"is longer than {_MAX_ID} characters")
        elif identifiers[name] and not identifiers[name].strip():
            yield Problem(f"/identifiers/{name}", "is blank")
    for crm, value in identifiers["crm_ids"].items():
        if not _is_word(value) or not _is_word(crm) or value.isspace():
            problem = f"its key and its value have to be 1 to {_MAX_ID} characters, none of them NUL, and not blank"
            yield Problem("/identifiers/crm_ids", problem)


def _sizes(kind: EventType, record: dict[str, Any]) -> Iterator[Problem]:
    for name, value in record.items():
        if type(value) is str:
            if len(value) > _MAX_STRING:
                yield Problem(f"/{name}", f"is longer than {_MAX_STRING} characters")
            elif "\0" in value:
                yield Problem(f"/{name}", "holds a NUL character")
        elif type(value) is float and not isfinite(value):
            yield Problem(f"/{name}", "is no finite number")
        elif type(value) is dict and name != "envelope":
            yield from _map(f"/{name}", value)
    yield from _map("/envelope/context", record["envelope"]["context"])
    for name, allowed in kind.enums.items():
        if record[name] not in allowed:
            yield Problem(f"/{name}", f"has to be one of {', '.join(allowed)}")


def _map(path: str, value: dict[str, Any]) -> Iterator[Problem]:
    if len(value) > _MAX_KEYS:
        yield Problem(path, f"has more than {_MAX_KEYS} keys")
    for key, item in value.items():
        if type(item) is str and ("\0" in item or len(item) > _MAX_STRING):
            yield Problem(f"{path}/{key}", f"is longer than {_MAX_STRING} characters or holds a NUL character")
        if not _is_word(key):
            yield Problem(path, f"a key has to be 1 to {_MAX_ID} characters, none of them NUL")


def _is_word(text: str) -> bool:
    return 0 < len(text) <= _MAX_ID and "\0" not in text
