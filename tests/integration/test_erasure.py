"""Erasure on a whole installation: canaries in every store, an answer in flight, what comes late, and the commands."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from confluent_kafka import Producer

from infra.clock import now_us
from infra.errors import DependencyUnavailable
from simulators.pdl import person
from tests.conftest import Stack, eventually
from tests.events import payload
from tests.integration.conftest import World, document, produced

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]  # the first of them starts the installation

_TABLES = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' AND table_type = 'BASE TABLE'"
_CLICKHOUSE = "SELECT name FROM system.tables WHERE database = currentDatabase() AND engine LIKE '%MergeTree'"
HOUR = 3_600_000_000


class Canary:
    """Looks for a word in every place where the installation keeps something."""

    def __init__(self, world: World, word: str) -> None:
        self.world = world
        self.word = word

    async def places(self) -> dict[str, int]:
        """Return the number of rows or files with the word in each place that has some."""
        found = {f"postgres {table}": rows async for table, rows in self._postgres()}
        for each in await self.world.clickhouse.query(_CLICKHOUSE):
            rows = await self.world.clickhouse.query(
                f"SELECT count() AS n FROM {each['name']} WHERE formatRow('JSONEachRow', *) ILIKE {{w:String}}",  # noqa: S608
                w=f"%{self.word}%",
            )
            found[f"clickhouse {each['name']}"] = rows[0]["n"]
        found["redis"] = await self._redis()
        found |= await asyncio.to_thread(self._files)
        return {place: count for place, count in found.items() if count}

    async def _postgres(self) -> Any:
        for (table,) in await self.world.postgres.fetch(_TABLES):
            statement = f'SELECT count(*) FROM "{table}" t WHERE t::text ILIKE $1 OR t::text LIKE $2'  # noqa: S608
            in_bytea = f"%{self.word.encode().hex()}%"
            yield table, await self.world.postgres.fetchval(statement, f"%{self.word}%", in_bytea)

    async def _redis(self) -> int:
        import redis.asyncio  # noqa: PLC0415 - only here

        client = redis.asyncio.from_url(self.world.places["redis"]["url"])
        try:
            keys = [key async for key in client.scan_iter()]
            values = [await client.dump(key) or b"" for key in keys]
        finally:
            await client.aclose()
        return sum(self.word.encode() in each for each in (*keys, *values))

    def _files(self) -> dict[str, int]:
        """Look at the logs and the simulators' files. Kafka's, Postgres' and ClickHouse's are looked at by queries."""
        found = {}
        for file in self.world.home.rglob("*"):
            part = file.relative_to(self.world.home).parts[0]
            if file.is_file() and part not in ("kafka", "postgres", "clickhouse", "redis", "cache"):
                found[f"file {file.name}"] = int(self.word.encode() in file.read_bytes())
        return found


@asynccontextmanager
async def faults(world: World, url: str, **values: Any) -> AsyncIterator[None]:
    """Set faults of a simulator, which other tests use too, for as long as the body runs."""
    answer = await world.http.post(f"{url}/_simulator/faults", json=values)
    assert answer.is_success, answer.text
    try:
        yield
    finally:
        await world.http.post(f"{url}/_simulator/faults", json={})


async def outcomes(world: World, lead_id: str) -> set[tuple[str, str, str]]:
    rows = await world.clickhouse.query(
        "SELECT stage, what, reason FROM outcomes WHERE lead_id = {l:String}", l=lead_id
    )
    return {(row["stage"], row["what"], row["reason"]) for row in rows}


async def test_an_erased_person_is_in_no_store_and_does_not_come_back(
    world: World, pipeline: Stack, unique: str
) -> None:
    word = f"canary{unique}"
    email = next(each for n in range(100) if person(f"email:{(each := f'{word}{n}@example.com')}"))
    canary = Canary(world, word)
    smtp = world.places["smtp"]["inbox"]
    async with faults(world, smtp, code=451):  # the mail waits, with its content
        form = document("e-1", unique, email=email, first_name=word, form_id="demo")
        form["envelope"]["context"] = {"page": f"https://example.com/{word}"}
        produced(pipeline, json.dumps(form).encode())
        known = payload(
            "lead_updated", "e-2", tenant=unique, at=now_us(), email=email, external_id=word, custom={"k": word}
        )
        produced(pipeline, known)

        async def everywhere() -> bool:
            found = await canary.places()
            tables = ("leads_p", "identities", "lead_history", "messages_sent")
            postgres = all(any(place.startswith(f"postgres {t}") for place in found) for t in tables)
            return postgres and {"clickhouse lead_events_store", "clickhouse leads_store", "file hubspot.jsonl"} <= set(
                found
            )

        await eventually(everywhere)
        exported = json.loads(await world.cli("leads", "export", email, "--tenant", unique, "--out", "-"))
        assert exported["format"] == "leadstream-person/1"
        assert {each["value"] for each in exported["identities"]} == {email, word}
        assert {each["event_id"] for each in exported["history"]} >= {"e-1", "e-2"}
        assert word in json.dumps(exported["events"])
        assert exported["messages"][0]["to"] == email
        assert exported["crm"][0]["remote_id"]

        lead_id = exported["lead_id"]
        removal = json.loads(await world.cli("erase", lead_id, "--json", "--wait", "60"))

        assert removal["complete"], removal
        assert {each["store"] for each in removal["stores"]} == {"leads", "work", "clickhouse", "crm-hubspot"}
        assert any(each["place"] == "Kafka topic leads.received" for each in removal["remains"])
        late = payload("lead_updated", "e-4", tenant=unique, at=now_us() - HOUR, email=email, title=word)
        again = payload("page_viewed", "e-5", tenant=unique, at=now_us(), external_id=word, url="/")
        dead = produced(pipeline, late, again)
        for message in dead:
            row = await eventually(lambda message=message: world.dead(message))  # type: ignore[misc]
            assert row["reason"] == "suppressed"
            assert word not in json.dumps(row)

        async def cancelled() -> bool:
            return ("messages-email", "skipped", "erased") in await outcomes(world, lead_id)

        await eventually(cancelled)
        await eventually(world.at_rest)
        assert await canary.places() == {}
        assert await world.contact(email) is None
    assert await world.mails(email) == []

    told = await world.cli("erase", lead_id, "--wait", "0")
    assert "crm-hubspot" in told
    assert "leads.dead" in told
    for command in (("erase", email), ("leads", "export", email)):
        await world.cli(*command, "--tenant", unique, expect=1)
    await world.cli("erase", f"nobody-{unique}", expect=1)
    consent = {"purpose": "marketing", "status": "granted"}
    produced(pipeline, payload("consent_changed", "e-6", tenant=unique, at=now_us(), email=email, **consent))
    await eventually(lambda: accepted(world, unique, "e-6"))
    assert (
        await world.postgres.fetchval("SELECT count(DISTINCT lead_id) FROM identities WHERE tenant = $1", unique) == 1
    )


async def test_an_answer_in_flight_does_not_bring_an_erased_person_back(
    world: World, pipeline: Stack, unique: str
) -> None:
    word, pdl = f"canary{unique}", world.places["pdl"]["url"]
    email = next(each for n in range(100) if person(f"email:{(each := f'{word}{n}@example.com')}"))
    async with faults(world, pdl, latency_ms=1800):
        produced(pipeline, payload("lead_updated", "e-1", tenant=unique, at=now_us(), email=email))
        await eventually(lambda: accepted(world, unique, "e-1"))
        produced(pipeline, payload("lead_erased", "e-2", tenant=unique, at=now_us(), email=email))
        await eventually(lambda: accepted(world, unique, "e-2"))
        lead_id = str(await world.postgres.fetchval("SELECT lead_id FROM leads WHERE tenant = $1", unique))

        async def answered() -> bool:
            return ("enrichment", "skipped", "erased") in await outcomes(world, lead_id)

        await eventually(answered)
    await eventually(world.at_rest)
    await eventually(lambda: removed(world, unique, 1))
    assert await Canary(world, word).places() == {}


async def test_a_thousand_erasures_under_load(world: World, pipeline: Stack, unique: str) -> None:
    """Without an e-mail address, because the provider's rate limit would make the test long."""
    people = {f"p-{number}": f"p{number}-{unique}" for number in range(1000)}
    word = f"canary{unique}"
    produced_many(
        pipeline,
        [
            payload("lead_updated", n, tenant=unique, at=now_us(), external_id=e, first_name=word)
            for n, e in people.items()
        ],
    )
    await eventually(world.at_rest, 120)
    other = f"load-{unique}"
    load = [payload("lead_updated", f"l-{n}", tenant=other, at=now_us(), external_id=f"l{n}") for n in range(20_000)]
    erasures = [payload("lead_erased", f"x{n}", tenant=unique, at=now_us(), external_id=e) for n, e in people.items()]
    produced_many(pipeline, [*load, *erasures])
    await eventually(lambda: removed(world, unique, len(people)), 300)
    canary = Canary(world, word)

    async def nothing_left() -> bool:
        try:
            return await canary.places() == {}
        except DependencyUnavailable:  # ClickHouse, under load
            return False

    await eventually(nothing_left)


async def accepted(world: World, tenant: str, event_id: str) -> bool:
    statement = "SELECT count(*) FROM lead_history WHERE tenant = $1 AND event_id = $2"
    return bool(await world.postgres.fetchval(statement, tenant, event_id))


async def removed(world: World, tenant: str, people: int) -> bool:
    statement = "SELECT count(*) FILTER (WHERE done_at IS NOT NULL), count(*) FROM erasures WHERE tenant = $1"
    done, stores = await world.postgres.fetchrow(statement, tenant)
    return bool(done == stores >= 4 * people)


def produced_many(stack: Stack, values: list[bytes]) -> None:
    producer = Producer({"bootstrap.servers": stack.kafka_bootstrap, "linger.ms": 20})
    for value in values:
        producer.produce("leads.received", value)
        producer.poll(0)
    assert producer.flush(60) == 0
