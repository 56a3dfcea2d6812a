"""Merging does not depend on the order: any order, repetition and grouping of events gives the same lead."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from streams.intake.event import Event
from streams.intake.merge import Lead, absorb, merge
from tests.events import HOUR, NOW, event

WORDS = st.sampled_from(["Ada", "Grace", "Alan", "Edsger"])


@st.composite
def events(draw: st.DrawFn, size: int = 8) -> list[Event]:
    made: list[Event] = []
    orders = st.sampled_from([None, {"first_name": 1000}, {"first_name": 999, "custom": 1000}])
    crm_ranks = draw(orders)
    for number in range(draw(st.integers(1, size))):
        # few instants, so that ties on time are common and event_id has to decide
        common: dict[str, Any] = {
            "at": NOW - draw(st.integers(0, 3)) * HOUR,
            "email": f"{draw(WORDS)}@example.com".lower(),
        }
        kind = draw(
            st.sampled_from(
                [
                    "lead_updated",
                    "crm_record_changed",
                    "form_submitted",
                    "enrichment_completed",
                    "consent_changed",
                    "page_viewed",
                    "lead_erased",
                ]
            )
        )
        if kind in ("lead_updated", "form_submitted", "enrichment_completed"):
            common["first_name"] = draw(WORDS | st.just(""))
            common["employees"] = draw(st.none() | st.integers(1, 3))
        if kind == "lead_updated":
            common["custom"] = draw(st.dictionaries(st.sampled_from(["plan", "tier"]), WORDS, max_size=2))
        if kind == "crm_record_changed":  # not the values of other sources: what is an echo depends on the order
            common |= {"crm": "hubspot", "record_id": "1", "first_name": draw(st.sampled_from(["", "C", "R", "M"]))}
            common |= {"email": "", "crm_ids": {"hubspot": draw(st.sampled_from(["1", "2"]))}}
        if kind in ("lead_updated", "crm_record_changed") and not common.get("first_name"):
            common["cleared"] = draw(st.sampled_from([[], ["first_name"], ["first_name", "custom.plan"]]))
            common["custom"] = {}
        if kind == "enrichment_completed":
            common["provider"] = "pdl"
        if kind == "consent_changed":
            common |= {"purpose": "marketing", "status": draw(st.sampled_from(["granted", "withdrawn"]))}
        # A tenant's order of sources. There is one CRM: what is an echo of another one's report depends on the order.
        ranks = crm_ranks if kind == "crm_record_changed" else draw(orders)
        made.append(event(kind, f"e-{number}", **common)._replace(ranks=ranks))
    return made


def lead_of(many: list[Event]) -> Lead:
    lead = Lead("lead", "acme", created_at=NOW, touches=[])
    for one in many:
        merge(lead, one)
    return lead


@given(st.data(), events())
@settings(max_examples=200, deadline=None)
def test_any_order_and_any_repetition_give_the_same_lead(data: st.DataObject, many: list[Event]) -> None:
    repeated = data.draw(st.permutations(many + data.draw(st.lists(st.sampled_from(many), max_size=4))))

    assert lead_of(repeated) == lead_of(many)


@given(st.data(), events())
@settings(max_examples=200, deadline=None)
def test_two_leads_merged_are_the_lead_that_had_all_events(data: st.DataObject, many: list[Event]) -> None:
    first = [one for one in many if data.draw(st.booleans())]
    second = [one for one in many if one not in first]

    survivor = lead_of(first)
    absorb(survivor, lead_of(second))

    assert survivor == lead_of(many)


@given(events())
@settings(max_examples=100, deadline=None)
def test_merge_returns_exactly_the_changed_fields(many: list[Event]) -> None:
    lead = Lead("lead", "acme", touches=[])
    reported: dict[str, Any] = {}
    for one in many:
        reported |= merge(lead, one)

    flat: dict[str, Any] = {}
    for name, value in lead.attributes.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": item for key, item in value.items()}
        elif not name.startswith(("first_touch", "last_touch")):
            flat[name] = value
    assert {name: value for name, value in reported.items() if value is not None} == flat
