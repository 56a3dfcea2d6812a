"""Erasures: in any batches, nothing that an erased person said before comes back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from infra.outcomes import Reason
from streams.intake.event import Event
from tests.events import HOUR, NOW, event
from tests.properties.test_decide import cuts, decoded, put
from tests.streams.intake.memory import MemoryStore

KINDS = ("lead_updated", "enrichment_completed", "consent_changed", "page_viewed", "lead_erased", "lead_erased")


@st.composite
def one(draw: st.DrawFn, number: int) -> Event:
    """Return an event of one of two people, with a canary that names the person and the time."""
    person, hour = draw(st.integers(0, 1)), draw(st.integers(0, 4))
    own: dict[str, Any] = {"at": NOW - 5 * HOUR + hour * HOUR, "email": f"p{person}@example.com"}
    if draw(st.booleans()):
        own["anonymous_id"] = f"a{person}"
    kind = draw(st.sampled_from(KINDS))
    if kind in ("lead_updated", "enrichment_completed"):
        own["first_name"] = f"canary-{person}-{hour}"
    if kind == "enrichment_completed":
        own |= {"provider": "pdl", "asked_at": own["at"] - draw(st.integers(0, 1)) * HOUR}
    if kind == "consent_changed":
        own |= {"purpose": "marketing", "status": draw(st.sampled_from(["granted", "withdrawn"]))}
    return event(kind, f"e-{number}", offset=number, **own)


@st.composite
def many(draw: st.DrawFn) -> list[Event]:
    return [draw(one(number)) for number in range(draw(st.integers(1, 12)))]


def erasures(events: Sequence[Event]) -> dict[str, int]:
    found: dict[str, int] = {}
    for each in events:
        if each.type.name == "lead_erased":
            email = each.record["identifiers"]["email"]
            found[email] = max(found.get(email, 0), each.at)
    return found


@given(st.data(), many())
@settings(max_examples=100, deadline=None)
async def test_any_batching_and_any_redelivery_erase_the_same(data: st.DataObject, events: list[Event]) -> None:
    found: list[Any] = []
    for batches in ([events], data.draw(cuts(events))):
        store, dead = MemoryStore(), set()
        for batch in batches:
            outputs = await put(store, batch)
            letters = [dict(o.headers or []) for o in outputs if o.topic == "leads.dead"]
            assert {letter["leadstream.reason"] for letter in letters} <= {Reason.SUPPRESSED.value.encode()}
            dead |= {int(letter["leadstream.offset"] or b"") for letter in letters}
        found.append((store.summary(), dead))
        assert len(store.tables.receipts) == len(events) - len(dead)
        check(store, events)
    assert found[0] == found[1]


def check(store: MemoryStore, events: Sequence[Event]) -> None:
    tables = store.tables
    # A weak identity can be bound again, by somebody who has a strong one.
    suppressed = {i for i, each in tables.suppressions.items() if each.lifted_at is None and i[1] == "email"}
    assert not suppressed & tables.identities.keys()
    for email, at in erasures(events).items():
        person = email[1]
        texts = [lead.attributes for lead in tables.leads.values()] + [
            lead.provenance for lead in tables.leads.values()
        ]
        texts += [past.changes for past in tables.history.values()]
        for hour in range(5):
            if NOW - 5 * HOUR + hour * HOUR <= at:
                assert not [text for text in texts if f"canary-{person}-{hour}" in text]


@given(many(), many())
@settings(max_examples=50, deadline=None)
async def test_a_redelivery_after_an_erasure_publishes_no_value(events: list[Event], after: list[Event]) -> None:
    store = MemoryStore()
    await put(store, events)
    await put(store, [e._replace(offset=100 + e.offset, event_id=f"n{e.event_id}", key=f"n{e.key}") for e in after])
    erased = {str(lead_id): lead.erased_at for lead_id, lead in store.tables.leads.items()}

    outputs = await put(store, events)

    for record in (decoded(output) for output in outputs if output.topic == "leads.changed"):
        at = erased[record["lead_id"]]
        if at is not None and record["occurred_at"] <= at and record["event_type"] != "lead_erased":
            assert json.loads(record["properties"]) == json.loads(record["changes"]) == {}
            assert record["context"] == {}
