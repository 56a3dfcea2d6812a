"""Events are assigned to leads by their identities."""

from __future__ import annotations

from itertools import permutations

import pytest

from infra.clock import uuid7
from schemas.rules import e164
from streams.intake.identity import identify
from tests.events import NOW, event


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("+44 20 7183 8750", "+442071838750"),
        ("tel:+1-415-555-2671", "+14155552671"),
        ("12345", ""),
        ("not a number", ""),
    ],
)
def test_phone_numbers_become_e164_or_nothing(given: str, normal: str) -> None:
    assert e164(given) == normal


def test_identities_are_normalised() -> None:
    one = event("page_viewed", "e-1", email=" Ada@Example.COM ", phone="+44 20 7183 8750")
    two = event("page_viewed", "e-2", email="ada@example.com")

    who = identify([one, two], {}, NOW, uuid7)

    assert who.lead_ids[0] == who.lead_ids[1]
    assert set(who.bindings) == {("acme", "email", "ada@example.com"), ("acme", "phone", "+442071838750")}


def test_an_event_with_identities_of_two_leads_merges_them_into_the_older() -> None:
    older, newer = uuid7(NOW), uuid7(NOW + 1_000_000)
    known = {("acme", "email", "ada@example.com"): newer, ("acme", "phone", "+442071838750"): older}

    who = identify([event("page_viewed", email="ada@example.com", phone="+442071838750")], known, NOW, uuid7)

    assert who.lead_ids == [older]
    assert who.merges == {newer: older}
    assert who.created == frozenset()


def test_any_order_within_a_batch_gives_the_same_groups() -> None:
    chain = [
        event("page_viewed", "e-1", anonymous_id="a"),
        event("page_viewed", "e-2", anonymous_id="a", email="ada@example.com"),
        event("page_viewed", "e-3", email="ada@example.com", external_id="user-1"),
        event("page_viewed", "e-4", external_id="user-2"),
    ]
    for order in permutations(chain):
        who = identify(order, {}, NOW, uuid7)
        by_event = {one.event_id: lead for one, lead in zip(order, who.lead_ids, strict=True)}
        assert by_event["e-1"] == by_event["e-2"] == by_event["e-3"] != by_event["e-4"]


def test_tenants_share_no_lead() -> None:
    who = identify(
        [
            event("page_viewed", email="a@example.com", tenant="acme"),
            event("page_viewed", email="a@example.com", tenant="other"),
        ],
        {},
        NOW,
        uuid7,
    )

    assert len(set(who.lead_ids)) == 2


def test_later_lead_ids_sort_after_earlier_ones() -> None:
    ids = [uuid7(NOW + step * 1000) for step in range(1000)]

    assert ids == sorted(ids)
    assert ids[0][14] == "7"
