"""Two tenants with equal data, and a third without a file: nothing of one reaches another, in any store or service."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import httpx
import pytest
import redis
from confluent_kafka import Producer

from infra.clickhouse.client import ClickHouse
from infra.clock import now_us
from tests.conftest import eventually
from tests.events import payload
from tests.integration.two_tenants import (
    DEFAULT,
    MERGING,
    OWN,
    PEOPLE,
    TENANTS,
    Installation,
    canary,
    events,
    installation,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

LEADS = PEOPLE + 1  # of each tenant: two leads are merged


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with installation(tmp_path_factory.mktemp("tenants")) as found:
        yield found


@pytest.fixture
async def postgres(running: Installation) -> AsyncIterator[asyncpg.Pool]:
    async with asyncpg.create_pool(running.state["postgres"]["dsn"], min_size=0, max_size=2) as pool:
        yield pool


def produce(running: Installation, *values: bytes) -> None:
    producer = Producer({"bootstrap.servers": running.state["kafka"]["bootstrap"]})
    for value in values:
        producer.produce("leads.received", value)
    assert producer.flush(30) == 0


def contacts(running: Installation, tenant: str) -> str:
    return _text(running.folders["hubspot"][tenant])


def mails(running: Installation, tenant: str) -> list[str]:
    file = running.folders["smtp"][tenant] / "mails.jsonl"
    return file.read_text("utf-8").splitlines() if file.exists() else []


def _text(folder: Path) -> str:
    return "\n".join(file.read_text("utf-8", "replace") for file in sorted(folder.rglob("*")) if file.is_file())


async def settled(running: Installation, postgres: asyncpg.Pool) -> bool:
    """Return whether every stage has done all of its work."""
    synced = await postgres.fetch(
        "SELECT l.tenant, count(*) FROM leads l JOIN crm_sync s USING (lead_id) WHERE l.merged_into IS NULL "
        "AND s.synced_version = l.version GROUP BY 1"
    )
    looked_up = await postgres.fetch("SELECT tenant, count(*) FROM enrichment_results GROUP BY 1")
    async with ClickHouse(running.state["clickhouse"]["url"]) as clickhouse:
        counted = await clickhouse.query("SELECT tenant, count() AS n FROM leads GROUP BY 1")
    if {row["tenant"]: row["n"] for row in counted} != dict.fromkeys(TENANTS, LEADS):
        return False
    enough = {row["tenant"]: row["count"] for row in synced} == dict.fromkeys(TENANTS, LEADS)
    asked = all(row["count"] >= PEOPLE for row in looked_up) and len(looked_up) == len(TENANTS)
    return enough and asked and all(len(mails(running, tenant)) >= PEOPLE for tenant in TENANTS)


async def rows(running: Installation, postgres: asyncpg.Pool) -> list[tuple[str, str]]:
    """Return every row of every table as (where, JSON)."""
    found: list[tuple[str, str]] = []
    tables = await postgres.fetch(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') "
        "AND NOT relispartition"
    )
    for (table,) in tables:
        content = await postgres.fetch(f"SELECT row_to_json(t)::text FROM {table} t")  # noqa: S608
        found += [(f"postgres {table}", row[0]) for row in content]
    async with ClickHouse(running.state["clickhouse"]["url"]) as clickhouse:
        named = await clickhouse.query(
            "SELECT name FROM system.tables WHERE database = currentDatabase() AND engine LIKE '%MergeTree'"
        )
        for each in named:
            content = await clickhouse.query(f"SELECT * FROM {each['name']}")  # noqa: S608
            found += [(f"clickhouse {each['name']}", json.dumps(row, default=str)) for row in content]
    return found


def in_redis(running: Installation) -> str:
    client = redis.Redis.from_url(running.state["redis"]["url"])
    return " ".join(f"{key!r} {client.dump(key)!r}" for key in client.scan_iter())


async def test_equal_data_of_two_tenants_never_cross(running: Installation, postgres: asyncpg.Pool) -> None:
    made = [value for each in zip(*map(events, TENANTS), strict=True) for value in each]  # interleaved
    late = MERGING * len(TENANTS)
    produce(running, *made[:-late])

    async def stored() -> bool:  # two leads of one person, which are merged then
        return bool(await postgres.fetchval("SELECT count(*) FROM leads") == (LEADS + 1) * len(TENANTS))

    await eventually(stored)
    produce(running, *made[-late:])
    await eventually(lambda: settled(running, postgres), 300)

    owner = {str(row[0]): row[1] for row in await postgres.fetch("SELECT lead_id, tenant FROM leads")}
    assert sorted(owner.values()) == sorted([*TENANTS] * (LEADS + 1)), "the same leads for each"
    crossings: list[str] = []
    seen: dict[str, set[str]] = {}
    for where, text in await rows(running, postgres):
        row = json.loads(text)
        about = {tenant for tenant in TENANTS if canary(tenant) in text}
        about |= {tenant for lead_id, tenant in owner.items() if lead_id in text}
        about |= {row.get("tenant")} & {*TENANTS}
        seen.setdefault(where, set()).update(about)
        if len(about) > 1:
            crossings.append(f"{where}: {sorted(about)}")
    assert crossings == []
    every = {*TENANTS}
    for where in (
        "leads",
        "identities",
        "lead_history",
        "lead_merges",
        "crm_sync",
        "enrichment_results",
        "messages_sent",
    ):
        assert seen[f"postgres {where}"] == every, "the scan has looked at something"
    for where in ("lead_events_store", "leads_store", "outcomes_store"):
        assert seen[f"clickhouse {where}"] == every
    assert not [tenant for tenant in TENANTS if canary(tenant) in in_redis(running)]
    destinations = await postgres.fetch("SELECT DISTINCT tenant, destination FROM crm_sync ORDER BY 1")
    assert [tuple(row) for row in destinations] == [
        ("acme", "hubspot:acme"),
        ("globex", "hubspot:globex"),
        (DEFAULT, "hubspot"),
    ]


async def test_each_crm_and_each_mailbox_has_only_its_tenant(running: Installation, postgres: asyncpg.Pool) -> None:
    await eventually(lambda: settled(running, postgres), 300)
    for tenant in TENANTS:
        others = [canary(other) for other in TENANTS if other != tenant]
        everything = contacts(running, tenant)
        assert canary(tenant) in everything
        assert not [word for word in others if word in everything]
        sent = mails(running, tenant)
        assert len(sent) == PEOPLE
        assert all(canary(tenant) in mail and not any(word in mail for word in others) for mail in sent)
    for tenant in OWN:
        assert all(f"hello@{tenant}.example" in mail for mail in mails(running, tenant))
    assert not any(f"hello@{tenant}.example" in mail for mail in mails(running, DEFAULT) for tenant in OWN)


async def test_a_result_is_paid_for_by_each_tenant_at_its_own_provider(
    running: Installation, postgres: asyncpg.Pool
) -> None:
    await eventually(lambda: settled(running, postgres), 300)
    async with httpx.AsyncClient(trust_env=False) as http:
        for tenant in OWN:
            answer = await http.get(f"http://127.0.0.1:{running.ports['pdl'][tenant]}/_simulator/stats")
            assert sum(answer.json()[name] for name in ("matched", "not_found")) >= PEOPLE


async def test_an_erasure_of_one_tenant_changes_nothing_of_another(
    running: Installation, postgres: asyncpg.Pool
) -> None:
    await eventually(lambda: settled(running, postgres), 300)
    query = "SELECT attributes::text FROM leads WHERE tenant = $1 AND attributes ->> 'email' = 'person0@example.com'"
    before = [await postgres.fetchval(query, tenant) for tenant in TENANTS]
    assert all(before)
    produce(running, payload("lead_erased", "erase", tenant="acme", email="person0@example.com", at=now_us()))

    async def erased() -> bool:
        return await postgres.fetchval(query, "acme") is None

    await eventually(erased)
    assert [await postgres.fetchval(query, tenant) for tenant in TENANTS[1:]] == before[1:]
