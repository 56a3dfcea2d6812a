"""What an event says about a lead: blanks, clearing, wrong clocks, a CRM user's corrections and our own echoes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.outcomes import Dead, Reason
from schemas import rules
from schemas.registry import registry
from streams.intake.event import Event
from streams.intake.merge import Lead, absorb, merge
from streams.intake.validate import validate
from tests.events import CODEC, HOUR, NOW, event, message, payload, record
from tests.streams.intake.conftest import intake, put
from tests.streams.intake.memory import MemoryStore

ADA: dict[str, Any] = {"email": "ada@example.com"}
CRM: dict[str, Any] = ADA | {"crm": "hubspot", "record_id": "501"}
KEYS = st.sampled_from(["", ".", "a.b", ".a", "a.", "..", "_erased", "_hidden", "first_touch", "x"])


def merged(*events: Event) -> Lead:
    lead = Lead("lead", "acme", touches=[])
    for one in events:
        merge(lead, one)
    return lead


@pytest.mark.parametrize(
    "blank", [" ", "\t\n", "\u00a0", "\u200b", "\ufeff", "\u3000 \u2060", "\u2800", "\u3164", "\x7f"]
)
def test_white_space_and_invisible_characters_say_nothing_in_maps_too(blank: str) -> None:
    first = event("lead_created", "e-1", at=NOW - HOUR, first_name="Ada", custom={"plan": "pro"}, **ADA)
    second = event("form_submitted", "e-2", first_name=blank, answers={"plan": blank}, form_id="demo", **ADA)

    lead = merged(first, second)

    assert (lead.attributes["first_name"], lead.attributes["custom"]) == ("Ada", {"plan": "pro"})


@pytest.mark.parametrize("visible", ["0", " x ", "\u200bx", "-", "\u0645"])
def test_a_visible_character_is_a_value(visible: str) -> None:
    assert merged(event("lead_created", first_name=visible, **ADA)).attributes["first_name"] == visible


@given(KEYS, KEYS, st.permutations(range(4)))
@settings(deadline=None)
def test_any_map_key_can_be_set_merged_and_erased(one: str, other: str, order: list[int]) -> None:
    """Keys that are empty or have dots were accepted before the rules refused some of them: they are stored."""
    made = [
        event("lead_updated", "e-0", at=NOW - 3 * HOUR, **ADA),
        event("lead_updated", "e-1", at=NOW - 2 * HOUR, external_id="a", **ADA),
        event("lead_erased", "e-2", at=NOW - 2 * HOUR, **ADA),
        event("lead_updated", "e-3", at=NOW, **ADA),
    ]
    for number, key in ((0, one), (1, other), (3, one)):
        made[number].record["custom"] = {key: f"value {number}"}
    lead, loser = merged(*(made[n] for n in order[:2])), merged(*(made[n] for n in order[2:]))

    absorb(lead, loser)

    assert lead.attributes["custom"] == {one: "value 3"}
    assert lead == merged(*made)


@pytest.mark.parametrize("purpose", ["", " ", "\u200b", "x" * 201, "a\0b"])
def test_a_consent_without_a_purpose_is_refused_with_its_path(purpose: str) -> None:
    made = record("consent_changed", purpose=purpose, status="granted", **ADA)
    dead = rules.check_event(registry().events["consent_changed"], made, NOW, 0)
    assert isinstance(dead, Dead)
    assert "/purpose" in {problem.path for problem in dead.problems}


# -- cleared ----------------------------------------------------------------------------------------------------------


def test_cleared_removes_a_value_and_a_key_of_a_map() -> None:
    known = event("lead_updated", "e-1", at=NOW - HOUR, title="CTO", custom={"plan": "pro", "a.b": "x"}, **ADA)
    lead = merged(known)

    changes = merge(lead, event("crm_record_changed", "e-2", cleared=["title", "custom.plan"], **CRM))

    assert changes == {"title": None, "custom.plan": None}
    assert "title" not in lead.attributes
    assert lead.attributes["custom"] == {"a.b": "x"}
    merge(lead, event("lead_updated", "e-3", cleared=["custom.a.b", "phone"], **ADA))
    assert "custom" not in lead.attributes


def test_an_empty_value_of_a_crm_clears_nothing() -> None:
    known = event("crm_record_changed", "e-1", at=NOW - HOUR, title="CTO", status="customer", **CRM)
    lead = merged(known, event("crm_record_changed", "e-2", title="", status="", **CRM))
    assert (lead.attributes["title"], lead.attributes["status"]) == ("CTO", "customer")


def test_a_cleared_value_does_not_come_back_with_an_older_event() -> None:
    late = event("lead_updated", "e-1", at=NOW - 2 * HOUR, title="CTO", **ADA)
    clearing = event("lead_updated", "e-2", at=NOW - HOUR, cleared=["title"], **ADA)
    for order in ((late, clearing), (clearing, late)):
        assert "title" not in merged(*order).attributes
    assert merged(late, clearing, event("lead_updated", "e-3", title="CEO", **ADA)).attributes["title"] == "CEO"


@pytest.mark.parametrize(
    ("cleared", "own", "path", "hint"),
    [
        (["titel"], {}, "/cleared/0", "did you mean title"),
        (["title", ""], {}, "/cleared/1", "name of a field"),
        (["custom"], {}, "/cleared/0", "no such field"),
        (["title"], {"title": "CTO"}, "/cleared/0", "also has a value"),
        (["custom.plan"], {"custom": {"plan": "pro"}}, "/cleared/0", "also has a value"),
        (["email"], {}, "/cleared/0", "also has a value"),
        (["lead_id"], {}, "/cleared/0", "no such field"),
        (["title.x"], {}, "/cleared/0", "no such field"),
        (["x" * 1_000_000], {}, "/cleared/0", "no such field"),
        (["title"] * 201, {}, "/cleared", "not have more than 200"),
        (["title\0"], {}, "/cleared/0", "without NUL"),
    ],
)
def test_a_wrong_name_to_clear_is_refused(cleared: list[str], own: dict[str, Any], path: str, hint: str) -> None:
    made = record("lead_updated", cleared=cleared, **own, **ADA)
    dead = rules.check_event(registry().events["lead_updated"], made, NOW, 0)
    assert isinstance(dead, Dead)
    assert dead.reason is Reason.INVALID_FIELD
    assert any(problem.path == path and hint in problem.message for problem in dead.problems), dead.problems


# -- clocks -----------------------------------------------------------------------------------------------------------


def received(value: bytes, at: int, offset: int) -> Event:
    made = message(value, offset=offset, at=at)
    found = validate(CODEC.decode(value), made, NOW, 24 * HOUR)
    assert isinstance(found, Event)
    return found


def test_a_clock_that_is_ahead_wins_against_nothing_that_was_received_later() -> None:
    wrong = received(payload("lead_updated", "e-1", at=NOW + 20 * HOUR, title="Wrong", **ADA), NOW, 0)
    right = received(payload("lead_updated", "e-2", at=NOW + HOUR, title="Right", **ADA), NOW + 2 * HOUR, 1)
    for order in ((wrong, right), (right, wrong)):
        assert merged(*order).attributes["title"] == "Right"
    same_time = received(payload("lead_updated", "e-4", at=NOW - 1_000_000, title="Said before", **ADA), NOW, 3)
    assert merged(same_time, wrong).attributes["title"] == "Said before"
    erased = received(payload("lead_erased", "e-3", at=NOW + 3 * HOUR, **ADA), NOW + 3 * HOUR, 2)
    assert merged(wrong, erased).attributes == {}
    assert merged(erased, wrong, right).attributes == {}


# -- a CRM ------------------------------------------------------------------------------------------------------------


def test_a_newer_correction_of_a_crm_user_beats_an_older_form_and_a_newer_form_beats_it() -> None:
    form = event("form_submitted", "e-1", at=NOW - 2 * HOUR, title="CTO", form_id="demo", **ADA)
    correction = event("crm_record_changed", "e-2", at=NOW - HOUR, title="VP", **CRM)
    newer = event("form_submitted", "e-3", at=NOW, title="CEO", form_id="demo", **ADA)
    for two in ((form, correction), (correction, form)):
        assert merged(*two).attributes["title"] == "VP"
    for three in ((form, correction, newer), (newer, correction, form)):
        assert merged(*three).attributes["title"] == "CEO"


def test_a_crm_that_reports_what_an_app_has_set_does_not_take_the_field_over() -> None:
    lead = merged(event("lead_updated", "e-1", at=NOW - 3 * HOUR, title="CTO", custom={"plan": "pro"}, **ADA))
    echo = event("crm_record_changed", "e-2", at=NOW - 2 * HOUR, title="CTO", custom={"plan": "pro"}, **CRM)

    changes = merge(lead, echo)
    merge(lead, event("lead_updated", "e-3", at=NOW, title="CEO", custom={"plan": "free"}, **ADA))

    assert "title" not in changes
    assert (lead.attributes["title"], lead.attributes["custom"]) == ("CEO", {"plan": "free"})


# -- one id, two events -----------------------------------------------------------------------------------------------


async def test_another_event_under_a_used_id_is_a_dead_letter_and_a_repetition_is_a_duplicate() -> None:
    form: dict[str, Any] = {"form_id": "demo", "first_name": "Ada", "answers": {"a": "1", "b": "2"}, **ADA}
    first = payload("form_submitted", "order-1", **form)
    repeated = record("form_submitted", "order-1", at=NOW - HOUR, **form)
    repeated["envelope"]["context"] = {"utm_source": "again"}
    repeated["answers"] = {"b": "2", "a": "1"}
    again = CODEC.encoder("form_submitted")(repeated)
    other = payload("meeting_booked", "order-1", starts_at=NOW, title="Demonstration", **ADA)
    changed = payload("form_submitted", "order-1", **form | {"first_name": "Bob"})
    store = MemoryStore()
    stage = intake(store, now=lambda: NOW)

    batch = [message(v, offset=n) for n, v in enumerate((first, again, other))]
    published = [await put(stage, *batch), await put(stage, message(changed, offset=9), message(again, offset=10))]

    assert [len(each["lead_change"]) for each in published] == [1, 0]
    assert [[o["offset"] for o in each["outcome"]] for each in published] == [[1], [10]]
    letters = [letter for each in published for letter in each["leads.dead"]]
    headers = [dict(letter.headers or []) for letter in letters]
    assert [letter.value for letter in letters] == [other, changed]
    assert {each["leadstream.reason"] for each in headers} == {b"event_id_reused"}
    assert {each["leadstream.event_id"] for each in headers} == {b"order-1"}
    assert all(b"leads.received/0/0" in (each["leadstream.detail"] or b"") for each in headers)


def test_a_correct_fact_of_the_same_moment_and_an_erasure_win_against_a_wrong_clock() -> None:
    wrong = received(payload("lead_updated", "e-1", at=NOW + 20 * HOUR, title="Wrong", **ADA), NOW + 300_000, 0)
    right = received(payload("lead_updated", "e-2", at=NOW + 1000, title="Right", **ADA), NOW + 301_000, 1)
    erased = received(payload("lead_erased", "e-3", at=NOW + 2000, **ADA), NOW + 302_000, 2)
    assert merged(wrong, right).attributes["title"] == "Right"
    assert merged(wrong, right, erased).attributes == {}


@pytest.mark.parametrize(
    ("sent", "reported"), [("CTO ", "CTO"), ("Head of\r\nEngines", "Head of Engines"), ("Jose\u0301", "Jos\u00e9")]
)
def test_a_crm_that_trims_a_text_repeats_it(sent: str, reported: str) -> None:
    lead = merged(event("lead_updated", "e-1", at=NOW - 2 * HOUR, title=sent, **ADA))
    assert "title" not in merge(lead, event("crm_record_changed", "e-2", at=NOW - HOUR, title=reported, **CRM))
    assert merge(lead, event("lead_updated", "e-3", title="CEO", **ADA))["title"] == "CEO"
