"""A provider is unavailable and then available again, while real workers are killed: every lead is enriched once."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import pytest

from operations import broker_topics
from operations.migrate_postgres import migrate
from schemas.codec import Codec
from simulators.pdl import person
from streams.enrichment.enrich import TOPIC
from tests.streams.enrichment.pdl_process import PdlProcess
from tests.streams.enrichment.requests import lead_id, request
from tests.streams.faust.workers import Broker, Workers, wait_until

CODEC = Codec()
COUNT = 3000


def _is_found(number: int) -> bool:
    found = person(f"email:lead{number}@example.com")
    return found is not None and found["likelihood"] >= 6


class Database:
    """The leads of one tenant, and its open requests."""

    def __init__(self, dsn: str, tenant: str) -> None:
        self._dsn = dsn
        self._tenant = tenant

    def insert_leads(self, count: int) -> None:
        rows = [
            (lead_id(self._tenant, n), self._tenant, orjson.dumps({"email": f"lead{n}@example.com"}).decode())
            for n in range(count)
        ]
        asyncio.run(self._insert(rows))

    def open_requests(self) -> int:
        return asyncio.run(self._open_requests())

    async def _insert(self, rows: list[tuple[str, str, str]]) -> None:
        database = await asyncpg.connect(self._dsn)
        await database.executemany(
            "INSERT INTO leads (lead_id, tenant, version, created_at, updated_at, attributes, provenance) "
            "VALUES ($1, $2, 1, now(), now(), $3, '{}')",
            rows,
        )
        await database.close()

    async def _open_requests(self) -> int:
        database = await asyncpg.connect(self._dsn)
        count: int = await database.fetchval("SELECT count(*) FROM enrichment_work WHERE tenant = $1", self._tenant)
        await database.close()
        return count


@pytest.mark.integration
@pytest.mark.chaos
@pytest.mark.parametrize("faults", [{"status": 503}, {"latency_ms": 10_000}], ids=["errors", "timeouts"])
def test_requests_of_an_outage_become_rows_and_are_answered_after_it(
    lone_stack: Any, provider: PdlProcess, tmp_path: Path, faults: Mapping[str, float]
) -> None:
    stack = lone_stack
    broker_topics.apply(stack.settings)
    asyncio.run(migrate(stack.settings.database_url))
    tenant = f"t-{uuid.uuid4().hex[:12]}"
    broker, database = Broker(stack.settings.kafka_bootstrap), Database(stack.settings.database_url, tenant)
    database.insert_leads(COUNT)
    provider.faults(**faults)
    environment = {
        "LEADSTREAM_HOME": str(tmp_path / "home"),
        "LEADSTREAM_KAFKA_BOOTSTRAP": stack.settings.kafka_bootstrap,
        "LEADSTREAM_DATABASE_URL": stack.settings.database_url,
        "LEADSTREAM_PROVIDER_PDL_BASE_URL": provider.url,
        "LEADSTREAM_PROVIDER_PDL_API_KEY": "test",
        "LEADSTREAM_PROVIDER_PDL_REQUESTS_PER_MINUTE": "1000000",
        "LEADSTREAM_PROVIDER_PDL_BREAKER_S": "2",
        "LEADSTREAM_PROVIDER_PDL_BREAKER_MAX_S": "4",
        "LEADSTREAM_ENRICHMENT_BACKOFF_MAX_S": "5",
        "LEADSTREAM_ENRICHMENT_LEASE_S": "70",
    }

    def records(topic: str, enough: int) -> list[dict[str, Any]]:
        def of_tenant(messages: list[Any]) -> list[dict[str, Any]]:
            decoded = (CODEC.decode(message.value()).record for message in messages if message.value())
            return [r for r in decoded if r.get("tenant", r.get("envelope", {}).get("tenant")) == tenant]

        return of_tenant(broker.follow(topic, lambda read: len(of_tenant(read)) >= enough, 60))

    with Workers(["-m", "streams.enrichment"], environment, tmp_path) as workers:
        workers.start()
        workers.start()
        broker.produce(TOPIC, ((lead_id(tenant, n).encode(), request(n, tenant)) for n in range(COUNT)))
        began = time.monotonic()
        assert wait_until(lambda: database.open_requests() == COUNT, 90), workers.logs()
        print(f"{COUNT} requests became rows in {time.monotonic() - began:.1f} s")  # noqa: T201 - shown by pytest -s
        assert wait_until(lambda: broker.committed("enrichment", TOPIC) == broker.ends(TOPIC)), workers.logs()
        calls = provider.stats()["calls"]
        assert calls < COUNT / 10, "the breakers did not open"
        workers.kill_and_restart(0)
        provider.faults()
        assert wait_until(lambda: database.open_requests() < COUNT / 2, 90), workers.logs()
        workers.kill_and_restart(1)
        assert wait_until(lambda: database.open_requests() == 0, 120), workers.logs()
        assert workers.terminate() == [0, 0], workers.logs()

    found = {f"request-{n}" for n in range(COUNT) if _is_found(n)}
    events = records("leads.received", len(found))
    assert {event["request_event_id"] for event in events} == found
    assert len({event["envelope"]["event_id"] for event in events}) == len(found), "a repeated result is the same event"
    outcomes = records("leads.outcomes", 2 * COUNT - 64)
    parked = {outcome["event_id"] for outcome in outcomes if outcome["what"] == "parked"}
    final = {outcome["event_id"]: outcome["what"] for outcome in outcomes if outcome["what"] != "parked"}
    assert parked == {f"request-{n}" for n in range(COUNT)}
    assert len(final) >= COUNT - 64, "only the outcome of a row that was written at a kill may be missing"
    assert all((what == "enriched") == (event_id in found) for event_id, what in final.items())
