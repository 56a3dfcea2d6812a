"""Groups of identified people do not depend on the order or the batches of the events, nor on the number of workers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from streams.intake.event import Event, EventBatch
from streams.intake.identity_policy import DEFAULT
from tests.conftest import outputs_of
from tests.events import NOW, event
from tests.streams.intake.conftest import intake
from tests.streams.intake.memory import MemoryStore

STRONG = st.fixed_dictionaries(
    {},
    optional={
        "email": st.sampled_from(["a@example.com", "b@example.com", "c@example.com", "d@example.com"]),
        "external_id": st.sampled_from(["u1", "u2", "u3", "u4"]),
    },
)
WEAK = st.fixed_dictionaries(
    {},
    optional={
        "phone": st.sampled_from(["+442071838750", "+16502530000"]),
        "anonymous_id": st.sampled_from(["kiosk", "tablet"]),
    },
)


@st.composite
def some(draw: st.DrawFn) -> list[Event]:
    found: list[Event] = []
    for number in range(draw(st.integers(1, 12))):
        who: dict[str, Any] = draw(STRONG) | draw(WEAK)
        if draw(st.booleans()):
            who.setdefault("email", "info@example.com")
        found.append(event("page_viewed", f"e-{number}", offset=number, **(who or {"anonymous_id": "kiosk"})))
    return found


async def people(events: Sequence[Event], size: int) -> set[frozenset[tuple[str, str]]]:
    """Return the strong identities of each identified lead, after the events in batches of ``size``."""
    store = MemoryStore()
    for start in range(0, len(events), size):
        await outputs_of(intake(store, now=lambda: NOW).apply(EventBatch(list(events[start : start + size]))))
    leads: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for (_, kind, value), lead_id in store.tables.identities.items():
        if DEFAULT.is_strong(kind, value):
            leads[lead_id].add((kind, value))
    return set(map(frozenset, leads.values()))


@given(some(), st.data(), st.integers(1, 4))
@settings(max_examples=300, deadline=None)
async def test_any_order_and_any_batches_give_the_same_identified_people(
    events: list[Event], data: st.DataObject, size: int
) -> None:
    one = await people(events, len(events))
    other = await people(data.draw(st.permutations(events)), size)

    assert one == other
    assert one == closure(events)


def closure(events: Sequence[Event]) -> set[frozenset[tuple[str, str]]]:
    """Return the groups of strong identities that events connect: an independent and slower calculation."""
    groups: list[set[tuple[str, str]]] = []
    for each in events:
        strong = {(kind, value) for _, kind, value in each.identities if DEFAULT.is_strong(kind, value)}
        if strong:
            touching = [group for group in groups if group & strong]
            groups = [group for group in groups if not group & strong] + [strong.union(*touching)]
    return set(map(frozenset, groups))
