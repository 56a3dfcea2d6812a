"""The rules of a lead event that its Avro type cannot say; the good path costs a few microseconds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import isfinite
from typing import Any

from infra.outcomes import Dead, Problem, Reason
from schemas.registry import EventType

EARLIEST = 946_684_800_000_000  # 2000-01-01 in microseconds
_TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_EVENT_ID = re.compile(r"[!-~][ -~]{0,199}")
_EMAIL = re.compile(r"[^\s@]{1,64}@[^\s@.]+(\.[^\s@.]+)+")
_MAX_ID = 200
_MAX_EMAIL = 254
_MAX_STRING = 8192
_MAX_KEYS = 200


def check(kind: EventType, record: dict[str, Any], now: int, max_ahead: int) -> Dead | None:
    """Return None where all is well, else Dead with every problem; ``now`` and ``max_ahead`` in microseconds.

    The reason is that of the gravest problem: a wrong field, then no identifier, then an absurd time.
    """
    envelope = record["envelope"]
    problems = [*_envelope(envelope), *_identifiers(record["identifiers"]), *_sizes(kind, record)]
    reasons = [Reason.INVALID_FIELD] if problems else []
    if not any(record["identifiers"].values()):
        reasons.append(Reason.NO_IDENTIFIER)
        problems.append(Problem("/identifiers", "says of nobody; give one of external_id, email, phone, anonymous_id"))
    if not EARLIEST <= envelope["occurred_at"] <= now + max_ahead:
        reasons.append(Reason.ABSURD_TIME)
        problems.append(
            Problem("/envelope/occurred_at", "is before 2000-01-01 or too far in the future; microseconds?")
        )
    return Dead(reasons[0], tuple(problems)) if reasons else None


def _envelope(envelope: dict[str, Any]) -> Iterator[Problem]:
    if not _TENANT.fullmatch(envelope["tenant"]):
        yield Problem("/envelope/tenant", "has to be 1 to 63 of a-z, 0-9, - and _, beginning with a letter or digit")
    if not _EVENT_ID.fullmatch(envelope["event_id"]):
        yield Problem("/envelope/event_id", f"has to be 1 to {_MAX_ID} printable ASCII characters")
    if not _is_word(envelope["source"]):
        yield Problem("/envelope/source", f"has to be 1 to {_MAX_ID} characters, none of them NUL")


def _identifiers(identifiers: dict[str, Any]) -> Iterator[Problem]:
    email = identifiers["email"]
    if email and (len(email) > _MAX_EMAIL or not _EMAIL.fullmatch(email.strip())):
        yield Problem("/identifiers/email", "is no e-mail address")
    for name in ("external_id", "anonymous_id", "phone"):
        if len(identifiers[name]) > _MAX_ID:
            yield Problem(f"/identifiers/{name}", f"is longer than {_MAX_ID} characters")
        elif identifiers[name] and not identifiers[name].strip():
            yield Problem(f"/identifiers/{name}", "is blank")
    for crm, value in identifiers["crm_ids"].items():
        if not _is_word(value) or not _is_word(crm):
            problem = f"its key and its value have to be 1 to {_MAX_ID} characters, none of them NUL"
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
