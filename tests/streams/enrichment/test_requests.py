"""Real workers on real Kafka and Postgres are killed while they work: every request has exactly one result."""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import asyncpg
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
COUNT = 1500
KILLS = 5


def _is_found(number: int) -> bool:
    found = person(f"email:lead{number}@example.com")
    return found is not None and found["likelihood"] >= 6


@pytest.mark.integration
@pytest.mark.chaos
def test_killed_workers_process_every_request_once(
    lone_stack: Any, provider: PdlProcess, tmp_path: Path, rng: random.Random
) -> None:
    stack = lone_stack
    provider.faults(latency_ms=40)
    broker_topics.apply(stack.settings)
    asyncio.run(migrate(stack.settings.database_url))
    broker, tenant = Broker(stack.settings.kafka_bootstrap), f"t-{uuid.uuid4().hex[:12]}"
    broker.produce(TOPIC, ((lead_id(tenant, n).encode(), request(n, tenant)) for n in range(COUNT)))
    environment = {
        "LEADSTREAM_HOME": str(tmp_path / "home"),
        "LEADSTREAM_KAFKA_BOOTSTRAP": stack.settings.kafka_bootstrap,
        "LEADSTREAM_DATABASE_URL": stack.settings.database_url,
        "LEADSTREAM_PROVIDER_PDL_BASE_URL": provider.url,
        "LEADSTREAM_PROVIDER_PDL_API_KEY": "test",
        "LEADSTREAM_PROVIDER_PDL_REQUESTS_PER_MINUTE": "1000000",
    }

    def of_tenant(messages: list[Any]) -> list[dict[str, Any]]:
        records = (CODEC.decode(message.value()).record for message in messages if message.value())
        return [r for r in records if r.get("tenant", r.get("envelope", {}).get("tenant")) == tenant]

    def processed(messages: list[Any]) -> int:
        return len({record["event_id"] for record in of_tenant(messages)})

    with Workers(["-m", "streams.enrichment"], environment, tmp_path) as workers:
        workers.start()
        workers.start()
        for kill in range(1, KILLS + 1):
            reached = kill * COUNT // (KILLS + 3)
            broker.follow("leads.outcomes", lambda read, enough=reached: processed(read) >= enough, 90)  # type: ignore[misc]
            workers.kill_and_restart(rng.randrange(2))
        outcomes = of_tenant(broker.follow("leads.outcomes", lambda read: processed(read) >= COUNT, 120))
        assert len({record["event_id"] for record in outcomes}) == COUNT, workers.logs()
        assert wait_until(lambda: broker.committed("enrichment", TOPIC) == broker.ends(TOPIC)), workers.logs()
        assert workers.terminate() == [0, 0], workers.logs()

    found = {f"request-{n}" for n in range(COUNT) if _is_found(n)}
    whats = {record["event_id"]: record["what"] for record in outcomes}
    assert Counter(whats.values()) == {"enriched": len(found), "skipped": COUNT - len(found)}
    events = [
        r
        for r in of_tenant(broker.follow("leads.received", lambda read: len(of_tenant(read)) >= len(found), 60))
        if r["envelope"]["source"] == "leadstream:enrichment:pdl"
    ]
    assert {r["request_event_id"] for r in events} == found
    by_id = {(r["envelope"]["event_id"], r["request_event_id"]) for r in events}
    assert len(by_id) == len(found), "a repeated result must be the same event"
    assert len({json.dumps(r, sort_keys=True) for r in events}) == len(found), "with the same values"

    rows = asyncio.run(_rows(stack.settings.database_url, tenant))
    spent = provider.stats()["credits_spent"]
    assert rows == COUNT
    assert spent - len(found) <= KILLS * 256, "only a call in flight at a kill can be paid for twice"


async def _rows(dsn: str, tenant: str) -> int:
    connection = await asyncpg.connect(dsn)
    count: int = await connection.fetchval("SELECT count(*) FROM enrichment_results WHERE tenant = $1", tenant)
    await connection.close()
    return count
