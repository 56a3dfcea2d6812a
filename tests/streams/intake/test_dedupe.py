"""Duplicates and redeliveries are recognised by key and coordinates."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from schemas.blanks import is_blank
from streams.intake.dedupe import Receipt, dedupe
from streams.intake.event import content_hash, event_key
from tests.events import event, record

BLANKS = st.text(" \t\n\0\x1f\x7f\x85\u00a0\u200b\u3164\ufeff", max_size=3)
TEXTS = st.text('ab :"\\{}[]é\u200b\x7f', min_size=1, max_size=6).filter(lambda text: not is_blank(text))
KEYS = st.text('kq":{} ', min_size=1, max_size=4)


def test_the_same_coordinates_are_a_redelivery_and_others_a_duplicate() -> None:
    accepted = event("page_viewed", "e-1", email="a@example.com", offset=7)
    again = event("page_viewed", "e-1", email="a@example.com", offset=9)
    receipts = {accepted.key: Receipt("leads.received", 0, 7, "lead", 3)}

    found = dedupe([accepted, again], receipts)

    assert found.redelivered == [(accepted, receipts[accepted.key])]
    assert found.duplicates == [again]
    assert found.new == []


@given(st.lists(st.sampled_from("abcd"), max_size=20), st.sets(st.sampled_from("abcd")))
def test_each_event_is_in_one_group_and_each_id_is_new_at_most_once(ids: list[str], accepted: set[str]) -> None:
    events = [event("page_viewed", name, email="a@example.com", offset=100 + at) for at, name in enumerate(ids)]
    receipts = {event_key("acme", name): Receipt("leads.received", 0, 1, "lead", 1) for name in accepted}

    found = dedupe(events, receipts)

    new = [one.event_id for one in found.new]
    assert sorted(new) == sorted(set(ids) - accepted)
    assert len(found.new) + len(found.redelivered) + len(found.duplicates) == len(events)


def test_an_answer_of_the_pipeline_that_is_published_again_with_a_newer_lead_is_a_duplicate() -> None:
    answer: dict[str, Any] = {"source": "leadstream:enrichment", "provider": "pdl", "email": "a@example.com"}
    first = event("enrichment_completed", "q-1", offset=1, **answer)
    again = event("enrichment_completed", "q-1", offset=2, external_id="u1", **answer)

    found = dedupe([first, again], {})

    assert first.content != again.content
    assert (found.new, found.duplicates, found.reused) == ([first], [again], [])


def test_keys_separate_tenants_and_ids() -> None:
    assert event_key("a", "bc") != event_key("ab", "c")


def form(answers: dict[str, str], **own: Any) -> int:
    made = record("form_submitted", **({"email": "a@example.com", "form_id": "demo"} | own), answers=answers)
    return content_hash("form_submitted", "web", made)


@given(st.dictionaries(KEYS, TEXTS, max_size=4), st.dictionaries(KEYS, BLANKS, max_size=4), BLANKS, BLANKS)
def test_absent_empty_and_white_space_are_the_same_content(
    answers: dict[str, str], blanks: dict[str, str], title: str, anonymous_id: str
) -> None:
    plain = form(answers)

    assert form(blanks | answers) == plain
    assert form(answers, title=title, anonymous_id=anonymous_id) == plain
    assert form(blanks | answers, title=title) == plain


@given(st.dictionaries(KEYS, TEXTS, max_size=4), KEYS, TEXTS, TEXTS)
def test_another_value_is_another_content(answers: dict[str, str], key: str, one: str, other: str) -> None:
    assert (form(answers | {key: one}) == form(answers | {key: other})) == (one == other)
    assert form(answers, title=one) != form(answers)
    assert form({key: one}) != form({})
