"""The followers of an erasure, on a real Postgres and a real ClickHouse."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import orjson
import pytest

from infra.clickhouse.client import ClickHouse
from infra.postgres.leased_rows import Done, Released
from infra.postgres.pool import INFINITY, connect
from operations.erasure_clickhouse import ClickHouseErasure
from operations.erasure_table import ErasuresTable
from operations.erasure_work import WorkErasure
from tests.conftest import Stack

pytestmark = pytest.mark.integration

START = 1_770_000_000_000_000
MINUTE = 60_000_000


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> int:
        return self.now


class World:
    """An erased lead with another one that was merged into it, in a store that only one test follows."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self.pool = pool
        self.clock = Clock()
        self.lead, self.loser = str(uuid.uuid4()), str(uuid.uuid4())
        self.store = f"store-{self.lead}"
        self.table = ErasuresTable(pool, self.store, lease_s=60, clock=self.clock)

    async def erase(self, version: int = 3) -> None:
        await self.pool.execute("INSERT INTO lead_aliases (alias_id, lead_id) VALUES ($1, $2)", self.loser, self.lead)
        await self.pool.execute(
            "INSERT INTO erasures (store, lead_id, tenant, event_id, version, erased_at, decided_at, next_attempt_at) "
            "VALUES ($1, $2, 'acme', 'erasure', $3, $4, $4, $4)",
            self.store,
            self.lead,
            version,
            START,
        )

    async def history(self, lead_id: str, version: int, event_id: str, occurred_at: int) -> None:
        await self.pool.execute(
            "INSERT INTO lead_history (lead_id, version, month, decided_at, tenant, event_id, event_type, source, "
            "occurred_at, changes) VALUES ($1, $2, date_trunc('month', now())::date, $3, 'acme', $4, 'lead_updated', "
            "'web', $5, '{}')",
            *(lead_id, version, START, event_id, occurred_at),
        )

    async def once(self, follower: Any) -> Any:
        """Claim the row and handle it; return its result, which is written if it is final."""
        lease = await self.table.claim(10)
        ((row, result),) = await follower.handle(lease)
        if isinstance(result, Done):
            await self.table.finish(lease, [(row, result)])
        else:
            await self.table.release(lease, [row])
        return result

    async def done_at(self, store: str = "") -> int | None:
        found: int | None = await self.pool.fetchval(
            "SELECT done_at FROM erasures WHERE store = $1 AND lead_id = $2", store or self.store, self.lead
        )
        return found


@pytest.fixture
async def world(stack: Stack) -> AsyncIterator[World]:
    async with await connect(stack.dsn, size=4, application="tests") as pool:
        yield World(pool)


async def message(world: World, lead_id: str, event_id: str) -> str:
    message_id = f"m-{event_id}-{lead_id}"
    await world.pool.execute(
        "INSERT INTO messages_sent (message_id, tenant, lead_id, event_id, campaign, channel, purpose, topic, "
        'partition, "offset", requested_at, request, next_attempt_at) VALUES '
        "($1, 'acme', $2, $3, 'c', $4, 'marketing', 't', 0, 0, $5, 'canary', 'infinity')",
        *(message_id, lead_id, event_id, f"channel-{world.lead}", START),
    )
    return message_id


async def test_messages_that_wait_become_due_and_are_ended_here_after_a_minute(world: World) -> None:
    await world.erase()
    await world.history(world.lead, 9, "after", START + 1)
    before = [await message(world, world.lead, "before"), await message(world, world.loser, "before")]
    after = await message(world, world.lead, "after")
    await world.pool.execute(
        "INSERT INTO enrichment_results (provider, key, tenant, lead_id, result, cost, fetched_at, expires_at) "
        "VALUES ('p', $1, 'acme', $2, '{}', 0, now(), now())",
        *(uuid.uuid4().bytes, world.loser),
    )
    statement = (
        "SELECT message_id, state, request IS NULL AS empty, next_attempt_at FROM messages_sent WHERE lead_id = ANY($1)"
    )

    assert isinstance(await world.once(WorkErasure(world.pool, world.clock)), Released)

    rows = {row["message_id"]: row for row in await world.pool.fetch(statement, [world.lead, world.loser])}
    assert all(rows[each]["next_attempt_at"] < INFINITY and not rows[each]["empty"] for each in before)
    assert not await world.pool.fetchval("SELECT count(*) FROM enrichment_results WHERE lead_id = $1", world.loser)
    world.clock.now += MINUTE
    assert isinstance(await world.once(WorkErasure(world.pool, world.clock)), Done)
    rows = {row["message_id"]: row for row in await world.pool.fetch(statement, [world.lead, world.loser])}
    assert all((rows[each]["state"], rows[each]["empty"]) == ("skipped", True) for each in before)
    assert rows[after]["state"] == "waiting"
    assert await world.done_at() == START + MINUTE


async def test_each_crm_that_has_the_lead_has_to_remove_it(world: World) -> None:
    await world.erase()
    rows = [("has", "17", 1, 1), ("wants", "", 2, 1), ("never", "", 1, 1)]
    for name, remote_id, wanted, synced in rows:
        await world.pool.execute(
            "INSERT INTO crm_sync (destination, tenant, lead_id, wanted_version, synced_version, last_wanted_at, "
            "remote_id) VALUES ($1, 'acme', $2, $3, $4, now(), $5)",
            *(name, world.lead, wanted, synced, remote_id),
        )
    for _ in range(2):
        await WorkErasure(world.pool, world.clock).handle(await world.table.claim(1))
        await world.pool.execute("UPDATE erasures SET claimed_until = '-infinity' WHERE lead_id = $1", world.lead)
    stores = await world.pool.fetch("SELECT store FROM erasures WHERE lead_id = $1 ORDER BY 1", world.lead)
    assert [row[0] for row in stores] == ["crm-has", "crm-wants", world.store]


async def test_clickhouse_is_done_when_every_event_has_arrived(world: World, stack: Stack) -> None:
    await world.erase()
    versions = {world.lead: [1, 2, 3, 4], world.loser: [1]}
    for lead_id, numbers in versions.items():
        for version in numbers:
            await world.history(lead_id, version, f"e-{version}", START + (version == 4))
    async with ClickHouse(stack.clickhouse_url) as server:
        follower = ClickHouseErasure(world.pool, server, world.clock)

        async def arrive(lead_id: str, version: int) -> None:
            lead = {"lead_id": lead_id, "version": version, "email": "canary", "created_at": 1, "updated_at": 1}
            row = {"tenant": "acme", "lead_id": lead_id, "version": version, "occurred_at": 1, "decided_at": 1}
            row |= {"properties": '{"a":"canary"}', "changes": '{"a":"canary"}', "context": {"page": "canary"}}
            row |= {"event_id": f"e-{version}", "event_type": "lead_updated", "lead": orjson.dumps(lead).decode()}
            await server.insert("landing_lead_change", "JSONEachRow", orjson.dumps(row))

        async def canaries(table: str) -> set[tuple[str, int]]:
            rows = await server.query(
                f"SELECT toString(lead_id) AS id, version FROM {table} WHERE lead_id IN {{ids:Array(UUID)}} "  # noqa: S608
                "AND formatRow('JSONEachRow', *) LIKE '%canary%'",
                ids=[world.lead, world.loser],
            )
            return {(row["id"], row["version"]) for row in rows}

        arrived = {(world.lead, 1), (world.lead, 3), (world.loser, 1)}
        for each in sorted(arrived):
            await arrive(*each)
        assert isinstance(await world.once(follower), Released)
        assert await canaries("lead_events_store") == arrived, "one mutation, not two, if the rest comes within seconds"
        world.clock.now += MINUTE
        assert isinstance(await world.once(follower), Released)
        assert await canaries("lead_events_store") == set()
        assert await canaries("leads_store") == {(world.lead, 3)}, "the version of the erasure has no values in reality"
        await arrive(world.lead, 2)
        await arrive(world.lead, 4)
        assert isinstance(await world.once(follower), Done)
        assert await canaries("lead_events_store") == {(world.lead, 4)}, "what was said after the erasure stays"
        assert (world.lead, 2) not in await canaries("leads_store")
        assert await world.done_at() == START + MINUTE
        rows = await server.query(
            "SELECT uniqExact(version) AS n FROM lead_events_store WHERE lead_id = {l:UUID}", l=world.lead
        )
        assert rows[0]["n"] == 4, "no event is lost for counts"
