"""Intake on a real Postgres: each event is decided once and published at least once."""

from __future__ import annotations

import json
from typing import Any

import asyncpg
import pytest

from infra.errors import DependencyUnavailable
from tests.events import HOUR, NOW, message, payload
from tests.streams.intake.conftest import EVENT_PART, intake, leads, open_pool, put, state

pytestmark = pytest.mark.integration


async def test_a_new_event_makes_a_lead_and_is_published(pool: asyncpg.Pool, unique: str) -> None:
    value = payload("form_submitted", "e-1", tenant=unique, email=" Ada@Example.com ", first_name="Ada", form_id="demo")
    published = await put(intake(pool), message(value, offset=41, partition=3))
    (lead,) = await leads(pool, unique)
    (change,) = published["lead_change"]
    assert (lead["version"], lead["email"], lead["attributes"]["first_name"]) == (1, "ada@example.com", "Ada")
    assert (change["lead_id"], change["version"], change["event_id"]) == (lead["lead_id"], 1, "e-1")
    assert (change["topic"], change["partition"], change["offset"]) == ("leads.received", 3, 41)
    assert json.loads(change["changes"])["email"] == "ada@example.com"
    assert json.loads(change["lead"])["first_name"] == "Ada"
    assert [(w["lead_id"], w["version"]) for w in published["crm_wanted"]] == [(lead["lead_id"], 1)]
    assert [json.loads(r["lead"])["email"] for r in published["enrichment_request"]] == ["ada@example.com"]
    assert [json.loads(s["properties"])["form_id"] for s in published["campaign_signal"]] == ["demo"]
    assert published["outcome"] == []
    stored = await state(pool, unique)
    assert [row[:2] for row in stored["identities"]] == [("email", "ada@example.com")]
    assert len(stored["lead_history"]) == len(stored["receipts"]) == 1


@pytest.mark.parametrize(("source", "asked"), [("import", True), ("leadstream:enrichment:pdl", False)])
async def test_a_new_address_is_enriched_unless_it_comes_from_enrichment(
    pool: asyncpg.Pool, unique: str, source: str, *, asked: bool
) -> None:
    own = {"provider": "import", "domain": "example.com", "source": source}
    value = payload("enrichment_completed", "e-1", tenant=unique, email="ada@example.com", **own)
    published = await put(intake(pool), message(value))
    assert [json.loads(r["lead"])["email"] for r in published["enrichment_request"]] == ["ada@example.com"] * asked


async def test_the_same_event_from_another_record_is_a_duplicate(pool: asyncpg.Pool, unique: str) -> None:
    stage = intake(pool)
    value = payload("form_submitted", "e-1", tenant=unique, email="a@example.com", first_name="Ada")
    other = payload("form_submitted", "e-1", tenant=unique, email="a@example.com", first_name="Ada", at=NOW + HOUR)
    await put(stage, message(value, offset=1))
    before = await state(pool, unique)
    for copy in (message(value, offset=2), message(value, offset=1, partition=1), message(other, offset=3)):
        published = await put(stage, copy)
        assert [(o["what"], o["reason"], o["event_id"]) for o in published["outcome"]] == [
            ("duplicate", "duplicate_event", "e-1")
        ]
        assert (published["outcome"][0]["partition"], published["outcome"][0]["offset"]) == (
            copy.partition(),
            copy.offset(),
        )
        assert not any(published[name] for name in published if name != "outcome")
    assert await state(pool, unique) == before


async def test_of_duplicates_within_a_batch_the_first_is_accepted(pool: asyncpg.Pool, unique: str) -> None:
    value = payload("lead_created", "e-1", tenant=unique, email="a@example.com", first_name="Ada")
    published = await put(intake(pool), *(message(value, offset=n) for n in range(3)))
    assert [(c["event_id"], c["version"]) for c in published["lead_change"]] == [("e-1", 1)]
    assert [o["offset"] for o in published["outcome"]] == [1, 2]
    (lead,) = await leads(pool, unique)
    assert (lead["version"], lead["attributes"]["first_name"]) == (1, "Ada")


async def test_a_redelivery_publishes_the_same_again_and_changes_nothing(pool: asyncpg.Pool, unique: str) -> None:
    stage = intake(pool)
    batch = [
        message(payload("lead_updated", f"e-{n}", tenant=unique, email=f"{n % 2}@example.com", title=f"t{n}"), offset=n)
        for n in range(6)
    ]
    first = await put(stage, *batch)
    await put(stage, message(payload("lead_updated", "later", tenant=unique, email="1@example.com"), offset=9))
    before = await state(pool, unique)
    for redelivered in (batch, batch[2:4], batch):
        published = await put(stage, *redelivered)
        offsets = {m.offset() for m in redelivered}
        expected = [c for c in first["lead_change"] if c["offset"] in offsets]
        part = [[{k: c[k] for k in EVENT_PART} for c in changes] for changes in (published["lead_change"], expected)]
        assert part[0] == part[1]
        assert published["outcome"] == []
        newest = {lead["lead_id"]: lead["version"] for lead in await leads(pool, unique)}
        assert {w["lead_id"]: w["version"] for w in published["crm_wanted"]} == newest
    assert await state(pool, unique) == before


async def test_a_redelivered_and_a_new_event_share_a_batch(pool: asyncpg.Pool, unique: str) -> None:
    stage = intake(pool)
    old = message(payload("lead_updated", "old", tenant=unique, email="a@example.com", title="one"), offset=1)
    newer = payload("lead_updated", "new", tenant=unique, email="a@example.com", title="two", at=NOW + 1)
    new = message(newer, offset=2)
    await put(stage, old)
    published = await put(stage, old, new)
    assert [(c["event_id"], c["version"]) for c in published["lead_change"]] == [("old", 1), ("new", 2)]
    assert [w["version"] for w in published["crm_wanted"]] == [2]
    assert (await leads(pool, unique))[0]["attributes"]["title"] == "two"


async def test_a_merge_of_two_leads_is_stored_and_published(pool: asyncpg.Pool, unique: str) -> None:
    stage = intake(pool)
    await put(stage, message(payload("page_viewed", "e-1", tenant=unique, anonymous_id="anon", url="/"), offset=1))
    known = payload("lead_updated", "e-2", tenant=unique, email="a@example.com", title="CTO")
    await put(stage, message(known, offset=2))
    first, second = await leads(pool, unique)
    both = payload("form_submitted", "e-3", tenant=unique, email="a@example.com", anonymous_id="anon")
    joining = message(both, offset=3)
    published = await put(stage, joining)
    (survivor,) = await leads(pool, unique)
    assert survivor["lead_id"] == first["lead_id"]
    assert (survivor["version"], survivor["attributes"]["title"]) == (2, "CTO")
    assert survivor["created_at"] == first["created_at"]
    (change,) = published["lead_change"]
    assert (change["lead_id"], change["version"], change["merged"]) == (first["lead_id"], 2, [second["lead_id"]])
    assert {w["lead_id"]: w["version"] for w in published["crm_wanted"]} == {first["lead_id"]: 2, second["lead_id"]: 2}
    stored = await state(pool, unique)
    assert {str(row[2]) for row in stored["identities"]} == {first["lead_id"]}
    assert [(str(a), str(b)) for a, b, *_ in stored["lead_aliases"]] == [(second["lead_id"], first["lead_id"])]
    row = await pool.fetchrow("SELECT * FROM lead_merges WHERE tenant = $1", unique)
    assert (str(row["survivor_id"]), str(row["loser_id"]), row["event_id"]) == (
        first["lead_id"],
        second["lead_id"],
        "e-3",
    )
    assert json.loads(row["identities"]) == [["email", "a@example.com"]]
    assert json.loads(row["loser"])["attributes"] == second["attributes"]
    assert json.loads(row["survivor"])["attributes"] == first["attributes"]
    loser = await pool.fetchrow("SELECT merged_into, version FROM leads WHERE lead_id = $1", second["lead_id"])
    assert (str(loser["merged_into"]), loser["version"]) == (first["lead_id"], 2)
    repeated = await put(stage, joining)
    assert [c["merged"] for c in repeated["lead_change"]] == [[second["lead_id"]]]
    assert {w["lead_id"] for w in repeated["crm_wanted"]} == {first["lead_id"], second["lead_id"]}
    assert await state(pool, unique) == stored


async def test_a_merge_moves_the_aliases_of_the_loser(pool: asyncpg.Pool, unique: str) -> None:
    stage = intake(pool)

    async def seen(event_id: str, offset: int, **who: str) -> None:
        await put(stage, message(payload("lead_updated", event_id, tenant=unique, **who), offset=offset))

    for number, name in enumerate("abcd"):
        await seen(f"made-{name}", number, anonymous_id=name)
    oldest, *others = [lead["lead_id"] for lead in await leads(pool, unique)]
    for number, name in enumerate("cdba"):
        await seen(f"x-{name}", 10 + number, anonymous_id=name, external_id="x")
    (lead,) = await leads(pool, unique)
    assert lead["lead_id"] == oldest
    aliases = await pool.fetch("SELECT alias_id::text FROM lead_aliases WHERE lead_id = $1", oldest)
    assert {row[0] for row in aliases} == set(others)
    assert {str(row[2]) for row in (await state(pool, unique))["identities"]} == {oldest}


async def test_an_event_never_changes_another_tenants_lead(pool: asyncpg.Pool, unique: str) -> None:
    stage, one, two = intake(pool), f"{unique}-1", f"{unique}-2"
    same: dict[str, Any] = {"email": "a@example.com", "phone": "+442071838750", "crm_ids": {"hubspot": "5"}}
    published = await put(
        stage,
        message(payload("lead_updated", "e", tenant=one, title="of one", **same), offset=1),
        message(payload("lead_updated", "e", tenant=two, company="of two", **same), offset=2),
    )
    assert published["outcome"] == []
    (of_one,), (of_two,) = await leads(pool, one), await leads(pool, two)
    assert of_one["lead_id"] != of_two["lead_id"]
    assert "company" not in of_one["attributes"]
    assert "title" not in of_two["attributes"]
    for change in published["lead_change"]:
        assert json.loads(change["lead"])["tenant"] == change["tenant"]
        assert change["lead_id"] == (of_one if change["tenant"] == one else of_two)["lead_id"]
    wanted = {(w["tenant"], w["lead_id"]) for w in published["crm_wanted"]}
    assert wanted == {(one, of_one["lead_id"]), (two, of_two["lead_id"])}


async def test_an_unavailable_postgres_is_reported_as_a_dependency(unique: str) -> None:
    async with open_pool("postgresql://leadstream@127.0.0.1:1/leadstream") as away:
        with pytest.raises(DependencyUnavailable, match="Postgres"):
            await put(intake(away), message(payload("lead_updated", tenant=unique, email="a@example.com")))
