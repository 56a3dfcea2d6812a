"""Commands: leads that somebody merges and splits."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest

from infra.kafka.producer import Output
from streams.intake.event import Event, EventBatch, Identity
from streams.intake.store import Transaction
from tests.conftest import outputs_of
from tests.events import CODEC, NOW, event, message, payload
from tests.streams.intake.conftest import intake
from tests.streams.intake.memory import MemoryStore, MemoryTransaction, Tables


class _Raced(MemoryTransaction):
    """A transaction whose first lookup of identities was before another worker's split."""

    def __init__(self, tables: Tables, stale: list[dict[Identity, str]]) -> None:
        super().__init__(tables, frozenset())
        self._stale = stale

    async def owners(self, events: Sequence[Event]) -> dict[Identity, str]:
        return self._stale.pop() if self._stale else await super().owners(events)


class RacedStore(MemoryStore):
    """``stale``: what the first lookup finds."""

    def __init__(self, tables: Tables, stale: dict[Identity, str]) -> None:
        super().__init__()
        self.tables = tables
        self._owners = [stale]

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        working = copy.deepcopy(self.tables)
        yield _Raced(working, self._owners)
        self.tables = working


class World:
    """Intake with a store in memory, and two leads: ada, the older one, and grace."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self._offset = 0
        self.last: list[Output] = []

    async def put(self, kind: str, event_id: str = "", *, offset: int = 0, **own: Any) -> list[dict[str, Any]]:
        """Return the lead changes."""
        self._offset += 1
        made = event(kind, event_id or f"e-{self._offset}", offset=offset or self._offset, **own)
        self.last = await outputs_of(intake(self.store, now=lambda: NOW + self._offset).apply(EventBatch([made])))
        return [CODEC.decode(o.value or b"").record for o in self.last if o.topic == "leads.changed"]

    async def merge(self, one: str, other: str, **own: Any) -> list[dict[str, Any]]:
        return await self.put("leads_merged", lead_id=one, other_lead_id=other, source="leadstream:cli", **own)

    async def split(self, one: str, other: str, **own: Any) -> list[dict[str, Any]]:
        return await self.put("lead_split", lead_id=one, other_lead_id=other, source="leadstream:cli", **own)

    def lead(self, name: str) -> str:
        return self.store.tables.identities["acme", "email", f"{name}@example.com"]

    def wanted(self) -> list[tuple[str, int]]:
        records = [CODEC.decode(o.value or b"").record for o in self.last if o.topic == "leads.crm-hubspot"]
        return [(record["lead_id"], record["version"]) for record in records]

    def dead(self) -> tuple[str, str]:
        (letter,) = self.last
        assert letter.topic == "leads.dead"
        headers = dict(letter.headers or [])
        return (headers["leadstream.reason"] or b"").decode(), (headers["leadstream.detail"] or b"").decode()

    def outcomes(self) -> list[str]:
        records = [CODEC.decode(o.value or b"").record for o in self.last if o.topic == "leads.outcomes"]
        return [record["reason"] for record in records]


@pytest.fixture
async def world() -> World:
    world = World(MemoryStore())
    for number, name in enumerate(("ada", "grace")):
        await world.put("lead_created", email=f"{name}@example.com", first_name=name.title(), at=NOW - number)
    return world


async def test_a_merge_merges_into_the_older_lead_whatever_the_order_of_the_ids(world: World) -> None:
    ada, grace = world.lead("ada"), world.lead("grace")

    (change,) = await world.merge(grace, ada)

    assert (change["lead_id"], change["version"], change["merged"]) == (ada, 2, [grace])
    assert world.lead("grace") == ada
    assert sorted(world.wanted()) == sorted([(ada, 2), (grace, 2)])


async def test_a_split_publishes_both_leads_and_so_does_its_redelivery(world: World) -> None:
    ada, grace = world.lead("ada"), world.lead("grace")
    await world.merge(ada, grace)

    changes = await world.split(ada, grace, event_id="s-1", offset=50)

    assert [(c["lead_id"], c["version"]) for c in changes] == [(ada, 3), (grace, 3)]
    assert sorted(world.wanted()) == sorted([(ada, 3), (grace, 3)])
    assert world.lead("grace") == grace
    tables = repr(world.store.tables)
    assert await world.split(ada, grace, event_id="s-1", offset=50) == changes
    assert sorted(world.wanted()) == sorted([(ada, 3), (grace, 3)])
    assert repr(world.store.tables) == tables
    assert await world.split(ada, grace, event_id="s-1", offset=51) == []
    assert world.outcomes() == ["duplicate_event"]


async def test_leads_that_were_split_stay_apart_until_somebody_merges_them(world: World) -> None:
    ada, grace = world.lead("ada"), world.lead("grace")
    await world.put("page_viewed", email="grace@example.com", external_id="g")
    await world.merge(ada, grace)
    await world.split(ada, grace)

    await world.put("page_viewed", email="ada@example.com", external_id="g")
    assert "kept_apart" in world.outcomes()
    assert (world.lead("ada"), world.lead("grace")) == (ada, grace)

    await world.merge(ada, grace)
    assert world.lead("grace") == ada
    assert world.store.tables.apart == set()
    await world.split(ada, grace)
    assert world.lead("grace") == grace


async def test_a_lead_that_was_merged_into_another_is_still_kept_apart(world: World) -> None:
    ada, grace = world.lead("ada"), world.lead("grace")
    await world.merge(ada, grace)
    await world.split(ada, grace)
    await world.put("lead_created", email="alan@example.com")
    await world.put("page_viewed", email="alan@example.com", external_id="a")
    await world.merge(grace, world.lead("alan"))
    holder = world.lead("grace")

    await world.put("page_viewed", email="alan@example.com", anonymous_id="x")
    await world.put("page_viewed", email="ada@example.com", external_id="a")

    assert "kept_apart" in world.outcomes()
    assert (world.lead("ada"), world.lead("grace"), world.lead("alan")) == (ada, holder, holder)


async def test_an_event_that_was_looked_up_before_a_split_is_decided_again(world: World) -> None:
    ada, grace = world.lead("ada"), world.lead("grace")
    await world.merge(ada, grace)
    await world.split(ada, grace)
    world.store = RacedStore(world.store.tables, {("acme", "email", "grace@example.com"): ada})

    (change,) = await world.put("page_viewed", email="grace@example.com")

    assert change["lead_id"] == grace


async def test_an_identifier_that_returns_leaves_the_fields_of_the_survivor(world: World) -> None:
    ada, grace = world.lead("ada"), world.lead("grace")
    await world.merge(ada, grace)
    await world.put("lead_updated", email="grace@example.com", first_name="Gracie", at=NOW + 1)

    survivor, restored = await world.split(ada, grace)

    assert '"email":"ada@example.com"' in survivor["lead"]
    assert '"first_name":"Gracie"' in survivor["lead"]  # what was said after the merge stays
    assert '"first_name":"Grace"' in restored["lead"]


async def refused(world: World, kind: str, one: str, other: str, **own: Any) -> tuple[str, str]:
    before = repr(world.store.tables)
    assert await world.put(kind, lead_id=one, other_lead_id=other, **own) == []
    assert repr(world.store.tables) == before
    return world.dead()


async def test_commands_that_cannot_be_executed_change_nothing_and_say_why(world: World) -> None:
    ada, grace, nobody = world.lead("ada"), world.lead("grace"), str(uuid4())
    await world.put("lead_created", email="alan@example.com")
    alan = world.lead("alan")

    assert await refused(world, "leads_merged", ada, nobody) == (
        "unknown_lead",
        "/other_lead_id: the tenant acme has no lead with this id",
    )
    assert (await refused(world, "leads_merged", ada, grace, tenant="other"))[0] == "unknown_lead"
    assert await refused(world, "lead_split", ada, grace) == ("not_merged", "/other_lead_id: it is not a merged lead")
    await world.merge(ada, grace)
    assert (await refused(world, "leads_merged", ada, grace))[0] == "same_lead"
    assert (await refused(world, "lead_split", ada, grace, tenant="other"))[0] == "unknown_lead"
    reason, detail = await refused(world, "lead_split", alan, grace)
    assert (reason, ada in detail) == ("not_merged", True)
    await world.put("lead_erased", email="ada@example.com", at=NOW + 2)
    assert (await refused(world, "lead_split", ada, grace))[0] == "erased"
    assert (await refused(world, "leads_merged", ada, alan))[0] == "erased"


async def test_the_error_names_the_split_that_comes_first(world: World) -> None:
    ada, grace = world.lead("ada"), world.lead("grace")
    await world.put("lead_created", email="alan@example.com")
    alan = world.lead("alan")
    first, middle, last = sorted([ada, grace, alan])
    await world.merge(middle, last)
    await world.merge(first, middle)

    assert await refused(world, "lead_split", middle, last) == (
        "not_merged",
        f"/lead_id: it is merged into the lead {first}: split it from that first",
    )
    await world.split(first, middle)
    await world.split(middle, last)
    assert {world.lead(name) for name in ("ada", "grace", "alan")} == {first, middle, last}


async def test_a_merge_above_a_cap_is_dead(world: World) -> None:
    for name in ("ada", "grace"):
        for number in range(30):
            await world.put("page_viewed", email=f"{name}@example.com", external_id=f"{name}-{number}")

    assert (await refused(world, "leads_merged", world.lead("ada"), world.lead("grace")))[0] == "identity_cap"


@pytest.mark.parametrize(("one", "path"), [("same", "/other_lead_id"), ("no id", "/lead_id"), ("", "/lead_id")])
def test_two_different_ids_of_leads_are_needed(one: str, path: str) -> None:
    lead_id = str(uuid4())
    ids = {"lead_id": lead_id if one == "same" else one, "other_lead_id": lead_id.upper()}
    for kind in ("leads_merged", "lead_split"):
        batch = intake(MemoryStore()).prepare([message(payload(kind, **ids))])

        assert batch.events == []
        assert batch.dead[0].dead.reason == "invalid_field"
        assert path in batch.dead[0].dead.detail


async def test_commands_are_decided_alone_and_in_order(world: World) -> None:
    ada, grace = world.lead("ada"), world.lead("grace")
    world.store.committed.clear()
    ids: dict[str, Any] = {"lead_id": ada, "other_lead_id": grace}
    made = [
        event("page_viewed", "p-1", offset=101, email="ada@example.com"),
        event("page_viewed", "p-2", offset=102, email="grace@example.com"),
        event("leads_merged", "m-1", offset=103, **ids),
        event("lead_split", "s-1", offset=104, **ids),
        event("page_viewed", "p-3", offset=105, email="grace@example.com"),
    ]

    await outputs_of(intake(world.store, now=lambda: NOW).apply(EventBatch(made)))

    assert world.store.committed == [["p-1", "p-2"], ["m-1"], ["s-1"], ["p-3"]]
    receipts = world.store.tables.receipts
    assert [receipts[each.key].lead_id for each in made] == [ada, grace, ada, ada, grace]
