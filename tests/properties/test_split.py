"""Merge and split are inverse: each lead has afterwards what it would have had without the merge."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from streams.intake.event import Event, EventBatch
from tests.conftest import outputs_of
from tests.events import HOUR, NOW, event
from tests.streams.intake.conftest import intake
from tests.streams.intake.memory import MemoryStore

KINDS = ("lead_updated", "form_submitted", "enrichment_completed", "consent_changed", "page_viewed")
WHO = ("a", "b", "c")


@st.composite
def said(draw: st.DrawFn, number: int) -> dict[str, Any]:
    """Return an event about nobody yet: its kind and its values."""
    kind = draw(st.sampled_from(KINDS))
    own: dict[str, Any] = {"kind": kind, "event_id": f"e-{number}", "at": NOW - draw(st.integers(0, 9)) * HOUR}
    if kind in ("lead_updated", "form_submitted", "enrichment_completed"):
        own["first_name"] = draw(st.sampled_from(["Ada", "Grace", "Alan"]))
    if kind == "lead_updated":
        own["custom"] = draw(st.dictionaries(st.sampled_from(["plan", "tier"]), st.sampled_from("xyz"), max_size=2))
    if kind == "enrichment_completed":
        own["provider"] = "pdl"
    if kind == "consent_changed":
        own |= {"purpose": "marketing", "status": draw(st.sampled_from(["granted", "withdrawn"]))}
    return own


@st.composite
def story(draw: st.DrawFn, most: int) -> list[tuple[str, dict[str, Any]]]:
    """Return who said what, in order."""
    start = draw(st.integers(0, 10**6)) * 100
    return [(draw(st.sampled_from(WHO)), draw(said(start + n))) for n in range(draw(st.integers(0, most)))]


class World:
    """Intake with a store in memory; each person is a lead of an own e-mail address and an own browser."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self._offset = 0

    async def put(self, *events: Event) -> list[Any]:
        placed = []
        for each in events:
            self._offset += 1
            placed.append(each._replace(offset=self._offset))
        return await outputs_of(intake(self.store, now=lambda: NOW).apply(EventBatch(placed)))

    async def tell(self, who: str, what: dict[str, Any]) -> None:
        own = dict(what)
        name: dict[str, Any] = (
            {"anonymous_id": f"browser-{who}"} if own["at"] % (2 * HOUR) else {"email": f"{who}@example.com"}
        )
        await self.put(event(own.pop("kind"), own.pop("event_id"), **name, **own))

    async def command(self, kind: str, one: str, other: str, number: int) -> list[Any]:
        return await self.put(
            event(kind, f"{kind}-{number}", lead_id=one, other_lead_id=other, source="leadstream:cli")
        )

    async def start(self) -> dict[str, str]:
        for number, who in enumerate(WHO):
            both: dict[str, Any] = {"anonymous_id": f"browser-{who}", "email": f"{who}@example.com"}
            await self.put(event("page_viewed", f"start-{number}", at=NOW - 20 * HOUR, **both))
        return {who: self.lead(who) for who in WHO}

    def lead(self, who: str) -> str:
        return self.store.tables.identities["acme", "email", f"{who}@example.com"]

    def values(self, lead_id: str) -> tuple[Any, ...]:
        row = self.store.tables.leads[lead_id]
        provenance = json.loads(row.provenance)
        del provenance["email"]  # an event after a merge may have the identifier of the merged lead
        visible = {name: stamp for name, stamp in provenance.items() if not name.startswith("_")}
        return json.loads(row.attributes), visible, row.merged_into, row.created_at

    def identities(self) -> dict[Any, str]:
        return dict(self.store.tables.identities)


@given(
    before=story(8),
    between=story(9),
    pairs=st.permutations([("b", "a"), ("c", "a"), ("c", "b")]),
    count=st.integers(1, 2),
    reverse=st.booleans(),
)
@settings(max_examples=200, deadline=None)
async def test_split_undoes_merge_for_any_events_before_and_between(
    before: list[tuple[str, dict[str, Any]]],
    between: list[tuple[str, dict[str, Any]]],
    pairs: Sequence[tuple[str, str]],
    count: int,
    reverse: bool,
) -> None:
    """The events between count for the lead that had the identity then.

    Merges are undone in reverse order, or in any order if they have the same survivor.
    """
    merged, apart = World(), World()
    ids, same = await merged.start(), await apart.start()

    async def tell(told: Sequence[tuple[str, dict[str, Any]]]) -> None:
        for who, what in told:
            holder = merged.lead(who)
            await merged.tell(who, what)
            await apart.tell(next(name for name in WHO if ids[name] == holder), what)

    await tell(before)
    identities = merged.identities()
    merges: list[tuple[str, str]] = []
    for number, pair in enumerate(pairs[:count]):
        into, other = sorted(merged.lead(who) for who in pair)
        await merged.command("leads_merged", ids[pair[0]], ids[pair[1]], number)
        merges.append((into, other))
        await tell(between[number::3])
    if reverse or len({into for into, _ in merges}) > 1:
        merges.reverse()
    for number, (into, other) in enumerate(merges):
        await merged.command("lead_split", into, other, number)
        await tell(between[2::3] if number == 0 else ())

    assert merged.identities() == identities
    for who in WHO:
        assert merged.values(ids[who]) == apart.values(same[who])
