"""No record stops a stage: the hostile corpus and mutated records through every consumer of the product.

Each record of the corpus ends as accepted, duplicate or dead; no process restarts; good records behind them are
processed; dead letters are bit-identical.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import pytest
from confluent_kafka import Message, Producer, TopicPartition

from infra.clickhouse.client import ClickHouse
from infra.kafka import client
from infra.kafka.dead_letters import PREFIX
from infra.kafka.headers import make_readable
from infra.settings import Settings
from operations.lag import LagReader
from tests.conftest import Stack, eventually
from tests.contracts.hostile_records import (
    CONSUMERS,
    TOPICS,
    Headers,
    Hostile,
    corpus,
    encoded,
    good_record,
    mutated,
)
from tests.contracts.unreadable_headers import send_unreadable

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

Place = tuple[str, int, int]  # topic, partition, offset
_OWN_HEADERS = 11  # that a dead letter has in addition


@dataclass
class World:
    """A running installation: sends records, and reads what became of them."""

    stack: Stack
    settings: Settings
    postgres: asyncpg.Pool
    clickhouse: ClickHouse
    sent: dict[Place, Hostile] = field(default_factory=dict)

    def send(self, topic: str, records: Sequence[Hostile]) -> list[Place]:
        """Produce ``records``; return their places."""
        producer = Producer({"bootstrap.servers": self.stack.kafka_bootstrap, "message.max.bytes": 20_000_000})
        places: list[Place | None] = [None] * len(records)

        def delivered(index: int) -> Any:
            def report(error: Any, message: Message) -> None:
                assert error is None, (records[index].kind, error)
                places[index] = (topic, message.partition() or 0, message.offset() or 0)

            return report

        for index, one in enumerate(records):
            if index % 1000 == 0:
                assert producer.flush(60) == 0
            producer.produce(topic, one.value, one.key, headers=list(one.headers), on_delivery=delivered(index))
            producer.poll(0)
        assert producer.flush(60) == 0
        found = [place for place in places if place is not None]
        self.sent |= dict(zip(found, records, strict=True))
        return found

    def restarts(self) -> dict[str, int]:
        state = json.loads((self.stack.home / "stack.json").read_text("utf-8"))
        assert not state["failures"], state["failures"]
        return {process["name"]: process["restarts"] for process in state["processes"] if process["restarts"]}

    async def drained(self, group: str) -> bool:
        reader = LagReader(self.settings)
        try:
            return (await asyncio.to_thread(reader.totals))[group].messages == 0
        finally:
            reader.close()

    async def letters(self) -> dict[Place, Message]:
        """Return all dead letters by the place of their record."""
        return await asyncio.to_thread(self._letters)

    def _letters(self) -> dict[Place, Message]:
        consumer = client.reader(self.settings, "hostile", {"enable.partition.eof": True})
        partitions = list(client.metadata(consumer, "leads.dead", timeout_s=30).topics["leads.dead"].partitions)
        consumer.assign([TopicPartition("leads.dead", partition, 0) for partition in partitions])
        found: dict[Place, Message] = {}
        ends = 0
        while ends < len(partitions):
            for message in consumer.consume(500, 1):
                if message.error() is not None:
                    ends += 1
                    continue
                make_readable(message)
                own = dict((message.headers() or [])[-_OWN_HEADERS:])
                place = [
                    (own.get(PREFIX + name) or b"").decode("utf-8", "replace")
                    for name in ("topic", "partition", "offset")
                ]
                if place[1].lstrip("-").isdecimal():
                    found[place[0], int(place[1]), int(place[2])] = message
        consumer.close()
        return found

    async def outcomes(self, topic: str) -> dict[Place, str]:
        """Return the tenants of the records of ``topic`` that were accepted or are duplicates."""
        found: dict[Place, str] = {}
        for table in ("lead_events", "outcomes"):
            rows = await self.clickhouse.query(
                f"SELECT partition, offset, tenant FROM {table} WHERE topic = {{t:String}}",  # noqa: S608
                t=topic,
            )
            found |= {(topic, row["partition"], row["offset"]): row["tenant"] for row in rows}
        return found


@pytest.fixture
async def world(pipeline: Stack) -> AsyncIterator[World]:
    settings = Settings.load({"LEADSTREAM_HOME": str(pipeline.home)})
    async with (
        asyncpg.create_pool(pipeline.dsn, min_size=1, max_size=2) as pool,
        ClickHouse(pipeline.clickhouse_url) as server,
    ):
        yield World(pipeline, settings, pool, server)


def good(topic: str, unique: str, **changes: Any) -> Hostile:
    made = good_record(topic, unique, **changes)
    return Hostile("good", encoded(topic, made), (made.get("lead_id") or "good").encode())


async def processed(world: World, topic: str, unique: str) -> int:
    """Return how many good records of the tenant have had their effect."""
    if topic == "leads.received":
        row = await world.postgres.fetchval(
            "SELECT count(*) FROM lead_history WHERE tenant = $1 AND source = 'web'", unique
        )
        return int(row)
    statements = {
        "leads.changed": "SELECT count() AS n FROM lead_events WHERE tenant = {t:String}",
        "leads.outcomes": "SELECT count() AS n FROM outcomes WHERE tenant = {t:String} AND stage = 'hostile'",
        "leads.dead": "SELECT count() AS n FROM dead_letters WHERE stage = {t:String}",
    }
    by_stage = "SELECT uniqExact(event_id, lead_id) AS n FROM outcomes WHERE tenant = {t:String} AND stage = {s:String}"
    rows = await world.clickhouse.query(statements.get(topic, by_stage), t=unique, s=CONSUMERS[topic])
    return int(rows[0]["n"])


def check_letters(world: World, letters: dict[Place, Message], topic: str) -> set[Place]:
    """Check that the dead letters of ``topic`` are bit-identical; return their places."""
    dead: set[Place] = set()
    for place, one in world.sent.items():
        letter = letters.get(place)
        if letter is None or place[0] != topic:
            continue
        dead.add(place)
        assert one.kind != "good"
        assert (letter.value() or b"") == (one.value or b""), one.kind
        assert letter.key() == one.key or (not one.key and not letter.key()), one.kind
        kept: Headers = (letter.headers() or [])[:-_OWN_HEADERS]
        assert kept == list(one.headers), one.kind
    return dead


def goods(topic: str, unique: str, count: int) -> list[Hostile]:
    if topic != "leads.dead":
        return [good(topic, unique) for _ in range(count)]
    headers: Headers = [(f"leadstream.{n}", v) for n, v in (("stage", unique.encode()), ("offset", b"1"))]
    numbers = [("leadstream.partition", str(number).encode()) for number in range(count)]
    return [Hostile("good", b"x", b"k", [*headers, number]) for number in numbers]


async def all_processed(world: World, wanted: dict[str, int], unique: str) -> None:
    """Wait until the good records of each topic have had their effect, and no consumer has lag."""
    for topic, count in wanted.items():

        async def processed_all(topic: str = topic, count: int = count) -> bool:
            return await processed(world, topic, unique) >= count

        await eventually(processed_all, 240)
    for group in sorted({CONSUMERS[topic] for topic in wanted}):

        async def no_lag(group: str = group) -> bool:
            return await world.drained(group)

        await eventually(no_lag, 240)


async def test_the_corpus_stops_no_consumer(world: World, unique: str) -> None:
    before = world.restarts()
    for topic in TOPICS:
        hostile = list(corpus(topic, f"h-{unique}"))
        assert len({one.kind for one in hostile}) >= 60
        world.sent |= await send_unreadable(world.stack.kafka_bootstrap, topic, f"h-{unique}")
        world.send(topic, [*hostile, *goods(topic, unique, 20)])

    await all_processed(world, dict.fromkeys(TOPICS, 20), unique)

    letters = await world.letters()
    dead = {topic: check_letters(world, letters, topic) for topic in TOPICS}
    await every_record_has_an_outcome(world, "leads.received", dead["leads.received"], f"no {unique}")
    assert world.restarts() == before


async def every_record_has_an_outcome(world: World, topic: str, dead: set[Place], unique: str) -> None:
    async def complete() -> bool:
        known = await world.outcomes(topic)
        return all(place in known for place in world.sent if place[0] == topic and place not in dead)

    await eventually(complete, 240)
    known = await world.outcomes(topic)
    # Forged records of other topics may name any place, but have another tenant.
    assert not [world.sent[place].kind for place in dead if unique in known.get(place, "")]


async def test_twenty_thousand_mutated_records_stop_nothing(world: World, unique: str, rng: random.Random) -> None:
    """Nine of ten are mutated; the good ones between them are all processed."""
    before = world.restarts()
    topic, count = "leads.received", 20_000
    records: list[Hostile] = []
    for number in range(count):
        if number % 10 == 0:
            records.append(good(topic, unique))
            continue
        made = good_record(topic, f"m-{unique}")
        value = encoded(topic, made)
        if rng.random() < 0.5:
            value = json.dumps({"type": "lead_updated"} | made).encode()
        headers: Headers = [
            (rng.choice(("traceparent", "x", "leadstream.reason")), mutated(b"00-%032x-%016x-01" % (number, 1), rng))
            for _ in range(rng.choice((0, 0, 1, 3)))
        ]
        records.append(Hostile(f"mutated {number}", mutated(value, rng), mutated(b"acme:1", rng), headers))
    world.send(topic, records)

    await all_processed(world, {topic: count // 10}, unique)
    dead = check_letters(world, await world.letters(), topic)
    await every_record_has_an_outcome(world, topic, dead, unique)
    assert len(dead) > count // 3
    assert world.restarts() == before


async def test_mutated_records_stop_no_consumer(world: World, unique: str, rng: random.Random) -> None:
    before = world.restarts()
    topics = [topic for topic in TOPICS if topic not in ("leads.received", "leads.dead")]
    for topic in topics:
        values = [encoded(topic, good_record(topic, f"m-{unique}")) for _ in range(1_500)]
        records = [Hostile(f"mutated {number}", mutated(value, rng)) for number, value in enumerate(values)]
        for number, one in enumerate(goods(topic, unique, 50)):
            records.insert(number * 30, one)
        world.send(topic, records)

    await all_processed(world, dict.fromkeys(topics, 50), unique)

    letters = await world.letters()
    assert all(check_letters(world, letters, topic) for topic in topics)
    assert world.restarts() == before


async def test_markers_and_aborted_records_leave_no_lag(world: World, unique: str) -> None:
    """A transaction marker takes an offset, and a consumer never gets it."""
    before = world.restarts()
    sent: dict[str, int] = defaultdict(int)
    # Tenants of their own, because the records of one topic cause records of the others.
    tenants = {topic: f"{unique}-{number}" for number, topic in enumerate(TOPICS)}
    for topic in TOPICS:
        settings = {"bootstrap.servers": world.stack.kafka_bootstrap, "transactional.id": f"{unique}-{topic}"}
        producer = Producer(settings)
        producer.init_transactions(30)
        for aborted in (True, False, True):
            producer.begin_transaction()
            for _ in range(3):
                one = good(topic, tenants[topic])
                producer.produce(topic, one.value, one.key)
            producer.flush(30)
            if aborted:
                producer.abort_transaction()
            else:
                producer.commit_transaction()
                sent[topic] += 3

    for topic in ("leads.received", "leads.changed", "leads.outcomes", "leads.enrichment-requested"):

        async def all_good(topic: str = topic) -> bool:
            return await processed(world, topic, tenants[topic]) == sent[topic]

        await eventually(all_good, 240)
    await all_processed(world, dict.fromkeys(TOPICS, 0), unique)
    assert world.restarts() == before
