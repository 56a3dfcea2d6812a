"""Precedence, erasure and touches of one lead."""

from __future__ import annotations

from streams.intake.merge import Lead, merge
from tests.events import HOUR, NOW, event


def test_authority_precedes_time() -> None:
    lead = Lead("lead", "acme")
    merge(lead, event("form_submitted", "e-1", email="ada@example.com", title="Countess", at=NOW - 5 * HOUR))

    changes = merge(lead, event("lead_updated", "e-2", email="ada@example.com", title="Programmer", at=NOW))

    assert lead.attributes["title"] == "Countess"
    assert "title" not in changes


def test_a_late_event_of_the_same_authority_never_overwrites_a_newer_value() -> None:
    lead = Lead("lead", "acme")
    merge(lead, event("lead_updated", "e-1", email="ada@example.com", status="won", at=NOW))

    merge(lead, event("lead_updated", "e-2", email="ada@example.com", status="new", at=NOW - HOUR))

    assert lead.attributes["status"] == "won"


def test_empty_values_change_nothing() -> None:
    lead = Lead("lead", "acme")
    merge(lead, event("lead_updated", "e-1", email="ada@example.com", company="Example Ltd", at=NOW - HOUR))

    changes = merge(lead, event("lead_updated", "e-2", email="ada@example.com", company="", at=NOW))

    assert changes == {}
    assert lead.attributes["company"] == "Example Ltd"


def test_an_erasure_removes_earlier_values_also_those_that_arrive_late() -> None:
    lead = Lead("lead", "acme")
    merge(lead, event("form_submitted", "e-1", email="ada@example.com", first_name="Ada", at=NOW - 3 * HOUR))
    merge(lead, event("lead_erased", "e-2", external_id="user-1", at=NOW - 2 * HOUR))

    late = merge(lead, event("form_submitted", "e-3", email="ada@example.com", first_name="Ada", at=NOW - 3 * HOUR))
    assert late == {}
    assert lead.attributes == {}

    merge(lead, event("form_submitted", "e-4", email="ada@example.com", first_name="Ada", at=NOW))
    assert lead.attributes["first_name"] == "Ada"


def test_touches_are_the_earliest_and_latest_event_of_a_person_or_an_app() -> None:
    lead = Lead("lead", "acme")
    merge(lead, event("page_viewed", "e-1", anonymous_id="a", source="ads", at=NOW - HOUR))
    merge(lead, event("page_viewed", "e-2", anonymous_id="a", source="web", at=NOW - 2 * HOUR))
    merge(lead, event("enrichment_completed", "e-3", email="ada@example.com", provider="pdl", at=NOW))

    assert (lead.attributes["first_touch_source"], lead.attributes["first_touch_at"]) == ("web", NOW - 2 * HOUR)
    assert (lead.attributes["last_touch_source"], lead.attributes["last_touch_at"]) == ("ads", NOW - HOUR)
