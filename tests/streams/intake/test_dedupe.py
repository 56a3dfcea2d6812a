"""Duplicates and redeliveries are recognised by key and coordinates."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from streams.intake.dedupe import Receipt, dedupe
from streams.intake.event import event_key
from tests.events import event


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
