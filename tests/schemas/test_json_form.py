"""A JSON event becomes a full record, or every problem is reported at once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


def found_in(event: object) -> Dead:
    _, found = from_json(event)  # type: ignore[arg-type]
    assert isinstance(found, Dead)
    return found


@pytest.mark.parametrize("where", ["", "/envelope", "/identifiers"])
def test_too_many_unknown_fields_are_one_problem_with_their_number(where: str) -> None:
    unknown = {f"k{i}": 1 for i in range(100_000)}
    outer = where.removeprefix("/")
    event = GOOD | ({outer: GOOD[outer] | unknown} if outer else unknown)  # type: ignore[operator]

    problems = found_in(event).problems

    assert [problem.path for problem in problems] == [where]
    assert "100000 fields are not in the schema" in problems[0].message


def test_fifty_unknown_fields_are_named_up_to_the_maximum_of_problems() -> None:
    problems = found_in(GOOD | {f"k{i}": 1 for i in range(50)}).problems

    assert [problem.path for problem in problems] == [*(f"/k{i}" for i in range(20)), ""]
    assert problems[-1].message == "and 30 more"


def test_only_the_first_unknown_fields_and_short_names_get_a_suggestion() -> None:
    problems = found_in(GOOD | {f"form_i{i}": 1 for i in range(10)}).problems
    assert ["did you mean" in problem.message for problem in problems] == [True] * 3 + [False] * 7

    problems = found_in(GOOD | {"form_id" * 7: 1}).problems
    assert problems[0].message == "no such field"


@pytest.mark.parametrize("value", [1, ""])
def test_a_map_with_too_many_keys_is_one_problem(value: object) -> None:
    problems = found_in(GOOD | {"answers": {f"k{i}": value for i in range(100_000)}}).problems

    assert [(problem.path, "200 keys" in problem.message) for problem in problems] == [("/answers", True)]


def test_long_names_and_types_are_not_repeated() -> None:
    assert len(found_in(GOOD | {"x" * 1_000_000: 1}).problems[0].path) == 100
    assert len(found_in(GOOD | {"type": "form_submitted" * 100_000}).detail) < 1000
    assert len(found_in(GOOD | {"answers": {"x" * 1_000_000: 1}}).detail) < 1000


def test_the_type_is_not_a_field_of_the_record() -> None:
    _, record = from_json(GOOD)
    assert not isinstance(record, Dead)
    assert "type" not in record
    assert "/envelope/type" in problems_of(GOOD | {"envelope": GOOD["envelope"] | {"type": "x"}})  # type: ignore[operator]


@given(names=st.sets(st.text(max_size=300), max_size=120), value=st.none() | st.integers() | st.text(max_size=9))
@settings(max_examples=100, deadline=None)
def test_whatever_the_names_the_problems_are_few_and_short(names: set[str], value: object) -> None:
    unknown = dict.fromkeys(names, value)
    event = GOOD | {"envelope": GOOD["envelope"] | unknown, "answers": unknown} | unknown | {"type": GOOD["type"]}  # type: ignore[operator]

    _, found = from_json(event)

    if isinstance(found, Dead):
        assert 1 <= len(found.problems) <= 21
        assert all(len(problem.path) <= 100 for problem in found.problems)
        assert len(found.detail) < 6000
