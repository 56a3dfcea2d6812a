"""The rules of an event that its Avro schema cannot express."""

from __future__ import annotations

import json
from typing import Any

import pytest

from infra.outcomes import Dead, Reason
from schemas import rules
from schemas.registry import registry
from tests.events import HOUR, NOW, record


def check(kind: str, **own: Any) -> Any:
    changes = {name: own.pop(name) for name in ("event_id", "tenant_", "source_") if name in own}
    made = record(kind, **own)
    made["envelope"] |= {name.rstrip("_"): value for name, value in changes.items()}
    return rules.check_event(registry().events[kind], made, NOW, HOUR)


@pytest.mark.parametrize(
    ("own", "reason", "path"),
    [
        ({}, Reason.NO_IDENTIFIER, "/identifiers"),
        ({"phone": "020 7183 8750"}, Reason.NO_IDENTIFIER, "/identifiers"),
        ({"phone": "call me"}, Reason.NO_IDENTIFIER, "/identifiers"),
        ({"email": "a@example.com", "at": 1}, Reason.ABSURD_TIME, "/envelope/occurred_at"),
        ({"email": "a@example.com", "at": NOW + 2 * HOUR}, Reason.ABSURD_TIME, "/envelope/occurred_at"),
        ({"email": "nobody"}, Reason.INVALID_FIELD, "/identifiers/email"),
        ({"email": "a@example.com", "tenant_": "Acme!"}, Reason.INVALID_FIELD, "/envelope/tenant"),
        ({"email": "a@example.com", "event_id": ""}, Reason.INVALID_FIELD, "/envelope/event_id"),
        ({"email": "a@example.com", "source_": ""}, Reason.INVALID_FIELD, "/envelope/source"),
        ({"external_id": "   "}, Reason.INVALID_FIELD, "/identifiers/external_id"),
        ({"email": "a@example.com", "url": "x" * 9000}, Reason.INVALID_FIELD, "/url"),
        ({"email": "a@example.com", "url": "a\0b"}, Reason.INVALID_FIELD, "/url"),
    ],
)
def test_an_invalid_event_is_dead_with_reason_and_path(own: dict[str, Any], reason: Reason, path: str) -> None:
    dead = check("page_viewed", **own)

    assert isinstance(dead, Dead)
    assert dead.reason is reason
    assert path in {problem.path for problem in dead.problems}


def test_a_value_outside_an_enum_is_reported_with_the_allowed_values() -> None:
    dead = check("consent_changed", email="a@example.com", purpose="marketing", status="maybe")

    assert "granted" in dead.detail


def test_an_event_that_happened_a_year_ago_is_valid() -> None:
    assert json.loads(check("page_viewed", email="a@example.com", at=NOW - 24 * 365 * HOUR))["identifiers"]["email"]
