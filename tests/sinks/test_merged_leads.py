"""After merges, one person is one lead in ClickHouse: whatever the order of events and merges, and over chains."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.clickhouse.client import ClickHouse
from sinks.clickhouse import ClickHouseSink
from tests.conftest import Stack
from tests.events import CODEC
from tests.sinks.test_clickhouse import change, messages, put

pytestmark = pytest.mark.integration


@pytest.fixture
async def server(stack: Stack) -> AsyncIterator[ClickHouse]:
    async with ClickHouse(stack.clickhouse_url) as server:
        yield server


class Events:
    """Events of a tenant of its own, with new lead ids."""

    def __init__(self, server: ClickHouse) -> None:
        self.server = server
        self.tenant = uuid.uuid4().hex
        self._sink = ClickHouseSink(server, CODEC)
        self._number = 0

    def event(self, lead_id: str, version: int, *merged: str) -> bytes:
        self._number += 1
        return change(self.tenant, self._number, lead_id=lead_id, version=version, merged=list(merged))

    async def put(self, values: Sequence[bytes]) -> None:
        start = uuid.uuid4().int % 2**60
        assert await put(self._sink, messages(*values, start=start)) == []

    async def query(self, statement: str) -> list[dict[str, Any]]:
        return await self.server.query(statement, t=self.tenant)

    async def people(self) -> tuple[int, int]:
        """Return the number of leads in lead_events, and of its events that join with leads."""
        (row,) = await self.query(
            "SELECT uniqExact(e.lead_id) AS leads, countIf(l.version > 0) AS joined FROM lead_events AS e "
            "LEFT JOIN leads AS l ON l.tenant = e.tenant AND l.lead_id = e.lead_id WHERE e.tenant = {t:String}"
        )
        return int(row["leads"]), int(row["joined"])


def ids(count: int) -> list[str]:
    return [str(uuid.uuid4()) for _ in range(count)]


async def test_case_a01_a_visitor_who_signs_up_is_one_person_with_all_events(server: ClickHouse) -> None:
    events = Events(server)
    visitor, ada = ids(2)
    await events.put([events.event(visitor, 1)])
    await events.put([events.event(ada, 1)])
    assert await events.people() == (2, 2)
    await events.put([events.event(ada, 2, visitor)])
    assert await events.people() == (1, 3)
    rows = await events.query(
        "SELECT toString(lead_id) AS lead, toString(original_lead_id) AS original FROM lead_events "
        "WHERE tenant = {t:String} ORDER BY event_id"
    )
    assert [(row["lead"], row["original"]) for row in rows] == [(ada, visitor), (ada, ada), (ada, ada)]


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.randoms(use_true_random=False))
async def test_chains_in_any_order_and_repetition_end_at_the_last_survivor(stack: Stack, order: Random) -> None:
    async with ClickHouse(stack.clickhouse_url) as server:
        await _chains(Events(server), order)


async def _chains(events: Events, order: Random) -> None:
    chain, other = ids(12), ids(2)
    values = [events.event(lead_id, 1) for lead_id in (*chain, *other)]
    values += [events.event(after, 2, before) for before, after in pairwise(chain)]
    values *= 2
    order.shuffle(values)
    for start in range(0, len(values), 9):
        await events.put(values[start : start + 9])
    assert await events.people() == (3, 25)
    rows = await events.query(
        "SELECT toString(lead_id) AS lead, count() AS n FROM lead_events WHERE tenant = {t:String} GROUP BY lead"
    )
    assert {row["lead"]: int(row["n"]) for row in rows} == {chain[-1]: 23, other[0]: 1, other[1]: 1}


async def test_a_merge_of_another_tenant_changes_nothing_and_a_cycle_ends(server: ClickHouse) -> None:
    one, two = Events(server), Events(server)
    a, b = ids(2)
    await one.put([one.event(a, 1), one.event(b, 2, a)])
    await two.put([two.event(a, 1), two.event(b, 1)])
    assert await two.people() == (2, 2)
    wrong = Events(server)
    await wrong.put([wrong.event(a, 1, b), wrong.event(b, 1, a)])
    rows = await wrong.query("SELECT lead_id = original_lead_id AS same FROM lead_events WHERE tenant = {t:String}")
    assert [bool(row["same"]) for row in rows] == [True, True]


async def test_readers_who_join_with_nulls_get_the_same(server: ClickHouse) -> None:
    events = Events(server)
    a, b = ids(2)
    await events.put([events.event(a, 1), events.event(b, 2, a)])
    statement = "SELECT DISTINCT toString(lead_id) AS lead FROM lead_events WHERE tenant = {t:String}"
    assert await events.query(f"{statement} SETTINGS join_use_nulls = 1") == [{"lead": b}]


async def test_the_queries_of_the_guide_give_one_person(server: ClickHouse) -> None:
    guide = Path(__file__).parents[2] / "docs" / "guides" / "merged-leads.md"
    people, joined, of_one = re.findall(r"```sql\n(.*?)```", guide.read_text("utf-8"), re.DOTALL)
    events = Events(server)
    a, b, c = ids(3)
    await events.put([events.event(a, 1), events.event(b, 2, a), events.event(c, 2, b)])
    assert [{name: int(n) for name, n in row.items()} for row in await events.query(people)] == [
        {"events": 3, "people": 1}
    ]
    ((email, count, _),) = [tuple(row.values()) for row in await events.query(joined)]
    assert (email, int(count)) == ("3@example.com", 3)
    rows = await server.query(of_one, t=events.tenant, lead=c)
    assert sorted(row["original_lead_id"] for row in rows) == sorted([a, b, c])
    assert {row["lead_id"] for row in rows} == {c}


async def test_after_a_split_the_events_count_for_their_own_lead_in_any_order(server: ClickHouse, rng: Random) -> None:
    for undone in (1, 2):
        events = Events(server)
        a, b, c = ids(3)
        values = [events.event(a, 1), events.event(b, 1), events.event(c, 1), events.event(b, 2, a)]
        for version in range(3, 3 + undone):
            own = {"event_type": "lead_split", "properties": json.dumps({"lead_id": b, "other_lead_id": a})}
            values += [change(events.tenant, 100 + version, lead_id=lead, version=version, **own) for lead in (b, a)]
        values += [events.event(c, 2, a)] * (undone - 1)  # merged again, into another lead, of an older version
        values *= 2
        rng.shuffle(values)
        for start in range(0, len(values), 4):
            await events.put(values[start : start + 4])
        rows = await events.query(
            "SELECT toString(lead_id) AS lead, toString(original_lead_id) AS original FROM lead_events "
            "WHERE tenant = {t:String} AND version = 1"
        )
        assert {row["original"]: row["lead"] for row in rows} == {a: a if undone == 1 else c, b: b, c: c}
        rows = await events.query("SELECT toString(lead_id) AS lead FROM leads WHERE tenant = {t:String}")
        assert {row["lead"] for row in rows} == ({a, b, c} if undone == 1 else {b, c})
