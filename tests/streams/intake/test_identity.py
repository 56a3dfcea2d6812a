"""Events are assigned to leads by their identities."""

from __future__ import annotations

from itertools import permutations
from typing import Any

from infra.clock import uuid7
from streams.intake.identity import Holder, Identified, identify
from streams.intake.identity_policy import IdentityPolicy
from tests.events import NOW, event


def test_identities_are_normalised() -> None:
    one = event("page_viewed", "e-1", email=" Ada@Example.COM ", phone="+44 20 7183 8750")
    two = event("page_viewed", "e-2", email="ada@example.com")

    who = identify([one, two], {}, NOW, uuid7)

    assert who.lead_ids[0] == who.lead_ids[1]
    assert set(who.bindings) == {("acme", "email", "ada@example.com"), ("acme", "phone", "+442071838750")}


def test_an_event_with_identities_of_two_leads_merges_them_into_the_older() -> None:
    older, newer = uuid7(NOW), uuid7(NOW + 1_000_000)
    known = {("acme", "email", "ada@example.com"): newer, ("acme", "external_id", "user-1"): older}

    who = identify([event("page_viewed", email="ada@example.com", external_id="user-1")], known, NOW, uuid7)

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


def assigned(*identifiers: dict[str, Any], **settings: Any) -> Identified:
    events = [event("page_viewed", f"e-{n}", offset=n, **each) for n, each in enumerate(identifiers)]
    return identify(events, settings.pop("owners", {}), NOW, uuid7, **settings)


def test_people_who_share_something_weak_stay_apart_and_the_first_keeps_it() -> None:
    for shared in ({"phone": "+442071838750"}, {"anonymous_id": "kiosk"}, {"email": "info@example.com"}):
        who = assigned(*({"external_id": f"user-{n}"} | shared for n in range(3)), shared)

        assert len(set(who.lead_ids)) == 3
        assert who.lead_ids[3] == who.lead_ids[0]
        assert [(refused.lead_id, refused.holder) for refused in who.refused] == [
            (who.lead_ids[n], who.lead_ids[0]) for n in (1, 2)
        ]


def test_an_anonymous_past_goes_to_the_first_who_claims_it() -> None:
    anonymous = uuid7(NOW - 1000)
    owners = {("acme", "anonymous_id", "tablet"): anonymous}
    holders = {anonymous: Holder(3, {"anonymous_id": 1}, identified=False)}

    who = assigned(
        {"email": "a@example.com", "anonymous_id": "tablet"},
        {"email": "b@example.com", "anonymous_id": "tablet"},
        owners=owners,
        holders=holders,
    )

    assert who.lead_ids[0] == anonymous != who.lead_ids[1]
    assert who.merges == {}


def test_two_anonymous_leads_with_a_common_event_are_one() -> None:
    one, other = uuid7(NOW), uuid7(NOW + 1000)
    owners = {("acme", "anonymous_id", "phone-browser"): one, ("acme", "phone", "+442071838750"): other}
    holders = {lead: Holder(1, {kind: 1}, identified=False) for (_, kind, _), lead in owners.items()}

    who = assigned({"anonymous_id": "phone-browser", "phone": "+442071838750"}, owners=owners, holders=holders)

    assert (who.lead_ids, who.merges) == ([one], {other: one})


def test_a_lead_gets_no_more_identities_than_its_cap_and_its_events_all_the_same() -> None:
    policy = IdentityPolicy(caps={"anonymous_id": 2, "external_id": 2})
    devices = [{"email": "a@example.com", "anonymous_id": f"device-{n}"} for n in range(4)]

    who = assigned(*devices, policies=lambda _: policy)

    assert len(set(who.lead_ids)) == 1
    assert {value for _, kind, value in who.bindings if kind == "anonymous_id"} == {"device-0", "device-1"}
    assert [refused.why for refused in who.refused] == ["cap", "cap"]

    users = [{"email": f"{n % 2}@example.com", "external_id": f"user-{n}"} for n in range(4)]
    who = assigned(*users, {"email": "0@example.com", "external_id": "user-1"}, policies=lambda _: policy)

    assert len(set(who.lead_ids)) == 2
    assert [refused.why for refused in who.refused] == ["cap"]


def test_a_tenant_may_add_placeholders_and_weak_addresses() -> None:
    policy = IdentityPolicy(weak_addresses=frozenset({"empfang"}), weak_domains=frozenset({"shared.example"}))
    shared = [{"external_id": f"u{n}", "email": "empfang@example.com"} for n in range(2)]
    domain = [{"external_id": f"v{n}", "email": "any@shared.example"} for n in range(2)]

    assert len(set(assigned(*shared, *domain).lead_ids)) == 2
    assert len(set(assigned(*shared, *domain, policies=lambda _: policy).lead_ids)) == 4
    walk_in = event("page_viewed", external_id="Walk-In", anonymous_id="x1").record["identifiers"]
    placeholders = IdentityPolicy(placeholders=frozenset({"walk-in"}))
    assert list(placeholders.identify(walk_in)) == [("anonymous_id", "x1")]
