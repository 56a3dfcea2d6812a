"""A JSON event becomes a full record, or every problem is reported at once."""

from __future__ import annotations

from infra.outcomes import Dead
from schemas.json_form import from_json

GOOD = {
    "type": "form_submitted",
    "envelope": {"event_id": "e-1", "tenant": "acme", "occurred_at": "2026-01-31T12:00:00Z", "source": "web"},
    "identifiers": {"email": "ada@example.com"},
    "form_id": "demo",
}


def problems_of(event: object) -> dict[str, str]:
    _, found = from_json(event)  # type: ignore[arg-type]
    assert isinstance(found, Dead)
    return {problem.path: problem.message for problem in found.problems}


def test_a_time_with_a_zone_becomes_microseconds_and_defaults_are_filled() -> None:
    name, record = from_json(GOOD)

    assert name == "form_submitted"
    assert not isinstance(record, Dead)
    assert record["envelope"]["occurred_at"] == 1_769_860_800_000_000
    assert record["identifiers"]["phone"] == ""
    assert record["employees"] is None


def test_every_wrong_field_is_reported_at_once() -> None:
    event = GOOD | {
        "envelope": {"event_id": 7, "occurred_at": "yesterday", "source": "web"},
        "form_id": ["demo"],
        "emial": "ada@example.com",
        "employees": "many",
        "answers": {"a": 1},
    }

    assert set(problems_of(event)) == {
        *("/envelope/event_id", "/envelope/tenant", "/envelope/occurred_at"),
        *("/form_id", "/emial", "/employees", "/answers/a"),
    }


def test_a_misspelt_field_gets_a_suggestion_and_no_message_contains_a_value() -> None:
    found = problems_of(GOOD | {"emial": "secret@example.com"})

    assert "/identifiers/email" in found["/emial"]
    assert all("secret" not in text for text in found.values())


def test_a_time_without_a_time_zone_is_rejected() -> None:
    event = GOOD | {"envelope": {**GOOD["envelope"], "occurred_at": "2026-01-31T12:00:00"}}  # type: ignore[dict-item]

    assert "zone" in problems_of(event)["/envelope/occurred_at"]


def test_an_unknown_event_type_gets_a_suggestion() -> None:
    assert "form_submitted" in problems_of(GOOD | {"type": "form_submited"})["/type"]
