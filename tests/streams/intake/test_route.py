"""The upper bound of record sizes that is checked before a decision is committed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.kafka.sizes import output_bytes
from streams.intake.decision import Change, Decision
from streams.intake.route import Router
from tests.events import CODEC, NOW, event

CRM = "leads.crm-hubspot"
TOPICS = ("leads.changed", "leads.enrichment-requested", "leads.campaign-signals", CRM, "leads.outcomes")
LEAD_ID = "019c1f0e-0000-7000-8000-000000000000"
LONG: dict[str, Any] = {
    "tenant": "t" * 63,
    "source": "\u6f22" * 200,
    "email": f"{'a' * 64}@{'b' * 180}.example",
    "crm_ids": {"c" * 200: "\U0001f600" * 200},
}
TRACEPARENT = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def router(limit: int) -> Router:
    return Router(CODEC, [CRM], topics=dict.fromkeys(TOPICS, limit), now=lambda: NOW)


@given(
    text=st.text(max_size=300),
    letter=st.sampled_from(["x", "\u00e9", "\u6f22", "\U0001f600", '"', "\x01"]),
    size=st.integers(0, 30_000),
    merged=st.sampled_from([0, 1, 1000]),
)
@settings(max_examples=200, deadline=None)
def test_no_record_of_a_change_is_larger_than_its_bound(text: str, letter: str, size: int, merged: int) -> None:
    made = router(262_144)
    one = event("form_submitted", "e" * 200, form_id="f", answers={"k": text.replace("\0", "")}, **LONG)
    one = one._replace(topic="t" * 249, partition=2**31 - 1, offset=2**63 - 1, traceparent=TRACEPARENT)
    changes = letter * size
    # The maximum size of a lead's attributes, and 300 bytes for its ids and times.
    lead = "\u6f22" * (made.limits.lead_bytes // 3) + "x" * 300
    losers = {f"{n:08d}{LEAD_ID[8:]}": 2**62 for n in range(merged)}
    change = Change(one, LEAD_ID, 2**62, 2**62, {"email": 1}, changes, losers, 2**62, lead)

    outputs = made.route(Decision(accepted=[change], signal_types=frozenset({"form_submitted"})))

    assert {output.topic for output in outputs} >= set(TOPICS[:4])
    assert max(output_bytes(output) for output in outputs) <= made.largest_record(change)


def test_the_outcome_of_a_duplicate_fits_the_smallest_permitted_topic() -> None:
    longest = event("page_viewed", "e" * 200, url="/", **LONG)._replace(topic="t" * 249, offset=2**63 - 1)
    (outcome,) = router(4096).unaccepted([longest], [], [], [], [])
    assert output_bytes(outcome) <= 4096


@pytest.mark.parametrize("topic", [CRM, "leads.outcomes"])
def test_a_topic_too_small_for_any_record_is_an_error_at_start(topic: str) -> None:
    with pytest.raises(ValueError, match=topic):
        Router(CODEC, [CRM], topics=dict.fromkeys(TOPICS, 1 << 20) | {topic: 4095})
