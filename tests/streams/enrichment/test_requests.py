"""Real workers on real Kafka and Postgres, killed in the middle: every request ends as exactly one result."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from infra.kafka import topics
from infra.postgres.migrate import migrate
from infra.settings import child_environment
from local.ports import free_port
from schemas.codec import Codec
from simulators.pdl import person
from streams.enrichment.enrich import TOPIC
from tests.streams.enrichment.requests import lead_id, request
from tests.streams.faust.workers import Broker, Workers, wait_until

CODEC = Codec()
COUNT = 1500
KILLS = 5


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[str]:
    """People Data Labs in a process of its own, as quick as one may be; gives its URL."""
    (tmp_path / "pdl.json").write_text(json.dumps({"per_minute": 1_000_000}))
    port = free_port()
    command = [sys.executable, "-m", "simulators", "pdl", "--port", str(port), "--state", str(tmp_path)]
    process = subprocess.Popen(command, env=child_environment({}))
    url = f"http://127.0.0.1:{port}"
    try:
        assert wait_until(lambda: bool(_get(f"{url}/_simulator/stats")), 30)
        body = json.dumps({"latency_ms": 40}).encode()
        urllib.request.urlopen(urllib.request.Request(f"{url}/_simulator/faults", body, method="POST"), timeout=5)  # noqa: S310 - our own
        yield url
    finally:
        process.terminate()
        process.wait(30)


def _get(url: str) -> dict[str, int]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own
            got: dict[str, int] = json.loads(answer.read())
            return got
    except OSError:
        return {}


def _known(number: int) -> bool:
    found = person(f"email:lead{number}@example.com")
    return found is not None and found["likelihood"] >= 6


@pytest.mark.integration
@pytest.mark.chaos
def test_workers_killed_in_the_middle_answer_every_request_once(lone_stack: Any, provider: str, tmp_path: Path) -> None:
    stack = lone_stack
    topics.apply(stack.settings)
    asyncio.run(migrate(stack.settings.database_url))
    broker, tenant, dice = Broker(stack.settings.kafka_bootstrap), f"t-{uuid.uuid4().hex[:12]}", random.Random(3)
    broker.produce(TOPIC, ((lead_id(tenant, n).encode(), request(n, tenant)) for n in range(COUNT)))
    environment = {
        "LEADSTREAM_HOME": str(tmp_path / "home"),
        "LEADSTREAM_KAFKA_BOOTSTRAP": stack.settings.kafka_bootstrap,
        "LEADSTREAM_DATABASE_URL": stack.settings.database_url,
        "LEADSTREAM_PROVIDER_PDL_BASE_URL": provider,
        "LEADSTREAM_PROVIDER_PDL_API_KEY": "test",
        "LEADSTREAM_PROVIDER_PDL_REQUESTS_PER_MINUTE": "1000000",
    }

    def of_tenant(messages: list[Any]) -> list[dict[str, Any]]:
        records = (CODEC.decode(message.value()).record for message in messages if message.value())
        return [r for r in records if r.get("tenant", r.get("envelope", {}).get("tenant")) == tenant]

    def answered(messages: list[Any]) -> int:
        return len({record["event_id"] for record in of_tenant(messages)})

    with Workers(["-m", "streams.enrichment"], environment, tmp_path) as workers:
        workers.start()
        workers.start()
        for kill in range(1, KILLS + 1):
            reached = kill * COUNT // (KILLS + 3)
            broker.follow("leads.outcomes", lambda read, enough=reached: answered(read) >= enough, 90)  # type: ignore[misc]
            workers.kill_and_restart(dice.randrange(2))
        outcomes = of_tenant(broker.follow("leads.outcomes", lambda read: answered(read) >= COUNT, 120))
        assert len({record["event_id"] for record in outcomes}) == COUNT, workers.said()
        assert wait_until(lambda: broker.committed("enrichment", TOPIC) == broker.ends(TOPIC)), workers.said()
        assert workers.terminate() == [0, 0], workers.said()

    known = {f"request-{n}" for n in range(COUNT) if _known(n)}
    whats = {record["event_id"]: record["what"] for record in outcomes}
    assert Counter(whats.values()) == {"enriched": len(known), "skipped": COUNT - len(known)}
    events = [
        r
        for r in of_tenant(broker.follow("leads.received", lambda read: len(of_tenant(read)) >= len(known), 60))
        if r["envelope"]["source"] == "leadstream:enrichment:pdl"
    ]
    assert {r["request_event_id"] for r in events} == known
    by_id = {(r["envelope"]["event_id"], r["request_event_id"]) for r in events}
    assert len(by_id) == len(known), "answering again is the same event"
    assert len({json.dumps(r, sort_keys=True) for r in events}) == len(known), "and says the same"

    rows = asyncio.run(_rows(stack.settings.database_url, tenant))
    spent = _get(f"{provider}/_simulator/stats")["credits_spent"]
    assert rows == COUNT
    assert spent - len(known) <= KILLS * 256, "only what was in flight at a kill can have been paid for twice"


async def _rows(dsn: str, tenant: str) -> int:
    connection = await asyncpg.connect(dsn)
    count: int = await connection.fetchval("SELECT count(*) FROM enrichment_results WHERE tenant = $1", tenant)
    await connection.close()
    return count
