"""Splits on a real Postgres: the rows of every table, and redeliveries after a crash."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import orjson
import pytest

from infra.clock import now_us
from streams.intake.pipeline import Intake
from tests.events import message, payload
from tests.streams.intake.conftest import intake, leads, put, state

START = now_us() - 60_000_000
pytestmark = pytest.mark.integration


async def tell(stage: Intake, kind: str, event_id: str, *, offset: int, **own: Any) -> dict[str, list[Any]]:
    value = payload(kind, event_id, at=START + offset, **own)
    return await put(stage, message(value, offset=offset, at=START + 1_000_000))


async def test_a_split_undoes_a_merge_in_every_table(pool: asyncpg.Pool, unique: str) -> None:
    stage, own = intake(pool), {"tenant": unique}
    for number, name in enumerate(("ada", "grace")):
        who = {"email": f"{name}@example.com", "anonymous_id": f"browser-{name}"}
        await tell(stage, "page_viewed", f"v-{name}", offset=number * 2, anonymous_id=who["anonymous_id"], **own)
        await tell(stage, "form_submitted", f"f-{name}", offset=number * 2 + 1, first_name=name, **who, **own)
    before, ids = await state(pool, unique), [each["lead_id"] for each in await leads(pool, unique)]
    pair = {"lead_id": ids[0], "other_lead_id": ids[1], "source": "leadstream:cli"} | own
    merged = await tell(stage, "leads_merged", "m-1", offset=10, **pair)
    assert merged["lead_change"][0]["merged"] == [ids[1]]
    await tell(stage, "form_submitted", "between", offset=11, email="grace@example.com", company="Example", **own)

    split = await tell(stage, "lead_split", "s-1", offset=12, **pair)

    after = await state(pool, unique)
    assert after["identities"] == before["identities"]
    assert [row[:2] for row in after["lead_aliases"]] == [row[:2] for row in before["lead_aliases"]]
    first, second = await leads(pool, unique)
    assert (first["email"], first["attributes"]["company"]) == ("ada@example.com", "Example")
    assert second["attributes"] == (await leads_of(before))[ids[1]]
    assert [(c["lead_id"], c["version"]) for c in split["lead_change"]] == [
        (ids[0], first["version"]),
        (ids[1], second["version"]),
    ]
    assert {record["lead_id"] for record in split["crm_wanted"]} == set(ids)
    again = await tell(stage, "lead_split", "s-1", offset=12, **pair)
    now = {"received_at", "lead"}  # of the test's record; the current lead
    assert [{k: v for k, v in c.items() if k not in now} for c in again["lead_change"]] == [
        {k: v for k, v in c.items() if k not in now} for c in split["lead_change"]
    ]
    assert [orjson.loads(c["lead"]) for c in again["lead_change"]] == [
        orjson.loads(c["lead"]) for c in split["lead_change"]
    ]
    assert await state(pool, unique) == after
    undone = await pool.fetch("SELECT undone_by FROM lead_merges WHERE tenant = $1 AND undone_at IS NOT NULL", unique)
    assert [row[0] for row in undone] == ["s-1"]


async def leads_of(tables: dict[str, list[tuple[Any, ...]]]) -> dict[str, Any]:
    return {
        str(row[0]): next(orjson.loads(c) for c in row if isinstance(c, str) and c[:1] == "{")
        for row in tables["leads"]
    }


async def test_leads_that_were_split_stay_apart_and_a_merge_joins_them_again(pool: asyncpg.Pool, unique: str) -> None:
    stage, own = intake(pool), {"tenant": unique}
    await tell(stage, "lead_created", "a", offset=0, email="ada@example.com", **own)
    await tell(stage, "lead_created", "b", offset=1, email="grace@example.com", external_id="g", **own)
    ids = [each["lead_id"] for each in await leads(pool, unique)]
    pair = {"lead_id": ids[0], "other_lead_id": ids[1]} | own
    await tell(stage, "leads_merged", "m-1", offset=2, **pair)
    await tell(stage, "lead_split", "s-1", offset=3, **pair)

    refused = await tell(stage, "page_viewed", "v", offset=4, email="ada@example.com", external_id="g", **own)

    assert [record["reason"] for record in refused["outcome"]] == ["kept_apart"]
    assert [each["lead_id"] for each in await leads(pool, unique)] == ids
    await tell(stage, "leads_merged", "m-2", offset=5, **pair)
    assert [each["lead_id"] for each in await leads(pool, unique)] == ids[:1]
    assert await pool.fetchval("SELECT count(*) FROM leads_apart WHERE tenant = $1", unique) == 0


async def test_an_erased_merge_stops_nothing(pool: asyncpg.Pool, unique: str) -> None:
    """An erasure empties the snapshots of the merges of its lead."""
    stage, own = intake(pool), {"tenant": unique}
    for number, name in enumerate(("ada", "grace", "alan")):
        await tell(stage, "lead_created", name, offset=number, email=f"{name}@example.com", **own)
    first, second, third = [each["lead_id"] for each in await leads(pool, unique)]
    for number, other in enumerate((second, third)):
        await tell(stage, "leads_merged", f"m-{number}", offset=10 + number, lead_id=first, other_lead_id=other, **own)
    empty = "UPDATE lead_merges SET survivor = '{}', loser = '{}', identities = '[]' WHERE loser_id = $1"
    await pool.execute(empty, second)

    split = await tell(stage, "lead_split", "s", offset=20, lead_id=first, other_lead_id=third, **own)

    assert [change["lead_id"] for change in split["lead_change"]] == [first, third]


async def test_an_event_decided_during_a_split_counts_for_the_lead_that_has_its_identity(
    pool: asyncpg.Pool, unique: str
) -> None:
    """Many times, events of the restored lead race with the split: none may be assigned to the survivor after it."""
    first, second = intake(pool), intake(pool)
    await tell(first, "lead_created", "a", offset=0, tenant=unique, email="ada@example.com")
    await tell(first, "lead_created", "b", offset=1, tenant=unique, email="grace@example.com")
    ids = [each["lead_id"] for each in await leads(pool, unique)]
    pair = {"lead_id": ids[0], "other_lead_id": ids[1], "tenant": unique}
    for number in range(10):
        await tell(first, "leads_merged", f"m-{number}", offset=10 + 10 * number, **pair)
        views = [
            tell(
                second,
                "page_viewed",
                f"v-{number}-{n}",
                offset=1000 + 10 * number + n,
                email="grace@example.com",
                tenant=unique,
            )
            for n in range(3)
        ]
        await asyncio.gather(tell(first, "lead_split", f"s-{number}", offset=11 + 10 * number, **pair), *views)

    rows = await pool.fetch(
        """
        SELECT h.lead_id::text, h.version, s.version AS split FROM lead_history h
        JOIN lead_history s ON s.lead_id = h.lead_id AND s.event_type = 'lead_split'
            AND s.event_id = 's-' || split_part(h.event_id, '-', 2)
        WHERE h.tenant = $1 AND h.event_type = 'page_viewed' AND h.lead_id = $2
        """,
        unique,
        ids[0],
    )
    assert all(row["version"] < row["split"] for row in rows)


async def test_a_lead_that_is_split_gets_back_the_leads_that_were_merged_into_it(
    pool: asyncpg.Pool, unique: str
) -> None:
    stage, own = intake(pool), {"tenant": unique}
    for number, name in enumerate(("ada", "grace", "alan", "mary")):
        await tell(stage, "lead_created", f"c-{name}", offset=number, email=f"{name}@example.com", **own)
    first, middle, last, other = [each["lead_id"] for each in await leads(pool, unique)]
    for number, (one, two) in enumerate(((middle, last), (first, middle), (first, other))):
        await tell(stage, "leads_merged", f"m-{number}", offset=10 + number, lead_id=one, other_lead_id=two, **own)
        if number == 0:
            before = await state(pool, unique)

    await tell(stage, "lead_split", "s-1", offset=20, lead_id=first, other_lead_id=middle, **own)

    aliases = await pool.fetch(
        "SELECT alias_id::text, lead_id::text FROM lead_aliases WHERE lead_id = ANY($1)", [first, middle]
    )
    assert {tuple(row) for row in aliases} == {(last, middle), (other, first)}
    after = await state(pool, unique)
    returned = [row for row in after["identities"] if str(row[2]) == middle]
    assert returned == [row for row in before["identities"] if str(row[2]) == middle]
    await tell(stage, "page_viewed", "v", offset=21, email="alan@example.com", **own)
    assert (
        await pool.fetchval("SELECT lead_id::text FROM lead_history WHERE tenant = $1 AND event_id = 'v'", unique)
        == middle
    )
