"""The topic of a tenant: found while intake runs; what does not belong into it is dead."""

from __future__ import annotations

import json
from functools import partial

import orjson
import pytest
from confluent_kafka import Message, Producer
from confluent_kafka.admin import AdminClient

from infra.clock import now_us
from infra.kafka.received import tenant_of
from infra.kafka.topics import load_topics
from operations import broker_topics
from tests.conftest import Stack, eventually
from tests.events import record
from tests.integration.conftest import World, document

pytestmark = pytest.mark.integration


def produce(stack: Stack, topic: str, *values: bytes) -> list[Message]:
    done: list[Message] = []
    producer = Producer({"bootstrap.servers": stack.kafka_bootstrap})
    for value in values:
        producer.produce(topic, value, headers={"source": "victim/crm"}, on_delivery=lambda _, sent: done.append(sent))
        producer.flush(30)
    assert [sent.error() for sent in done] == [None] * len(values)
    return done


async def test_a_tenants_topic_is_read_and_admits_only_its_own_events(
    world: World, pipeline: Stack, unique: str
) -> None:
    topic = f"leads.received.{unique}"
    wanted = {name: each for name, each in load_topics(tenants=[unique]).items() if tenant_of(name)}
    assert [each.topic for each in broker_topics.apply(pipeline.settings, wanted) if each.what == "missing"] == [topic]
    good = orjson.dumps(document("e-good", unique, email="a@example.com"))
    stolen = orjson.dumps(document("e-stolen", f"{unique}-victim", email="a@example.com"))
    erasure = orjson.dumps(
        {"type": "lead_erased"} | record("lead_erased", "e-erased", at=now_us(), tenant=unique, external_id="x")
    )
    sent = produce(pipeline, topic, good, stolen, b"\x07 bytes")
    await eventually(lambda: world.lead(unique), timeout_s=30)
    assert await world.lead(f"{unique}-victim") is None

    for message, reason in zip(sent[1:], ("forbidden", "not_avro"), strict=True):
        row = await eventually(partial(world.dead, message))
        assert row["reason"] == reason
        (letter,) = await world.clickhouse.query(
            "SELECT tenant, sender FROM dead_letters WHERE topic = {t:String} AND partition = {p:Int32}"
            " AND offset = {o:Int64}",
            t=topic,
            p=message.partition(),
            o=message.offset(),
        )
        assert (letter["tenant"], letter["sender"].partition("/")[0]) == (unique, unique)
    (refused,) = produce(pipeline, topic, erasure)
    assert (await eventually(partial(world.dead, refused)))["reason"] == "forbidden"

    lag = json.loads(await world.cli("lag", "--json", "--group", "intake"))
    assert topic in {row["topic"] for row in lag}
    place = f"{topic}/{sent[0].partition()}/{sent[0].offset()}"
    await eventually(lambda: world.events(unique))
    assert f"tenant {unique}" in await world.cli("trace", place)
    assert "forbidden" in await world.cli("dead", "show", topic, str(sent[1].partition()), str(sent[1].offset()))


async def test_the_end_of_a_tenants_topic_does_not_stop_intake(world: World, pipeline: Stack, unique: str) -> None:
    topic = f"leads.received.{unique}"
    wanted = {name: each for name, each in load_topics(tenants=[unique]).items() if tenant_of(name)}
    broker_topics.apply(pipeline.settings, wanted)
    produce(pipeline, topic, orjson.dumps(document("e-1", unique, email="a@example.com")))
    await eventually(lambda: world.lead(unique), timeout_s=30)
    before = restarts(await world.cli("status", "--json"))
    admin = AdminClient({"bootstrap.servers": pipeline.kafka_bootstrap})
    admin.delete_topics([topic])[topic].result()
    (sent,) = produce(pipeline, "leads.received", orjson.dumps(document("e-2", f"{unique}-2", email="a@example.com")))
    assert sent.error() is None
    await eventually(lambda: world.lead(f"{unique}-2"), timeout_s=30)
    broker_topics.apply(pipeline.settings, wanted)  # the tenant comes back
    produce(pipeline, topic, orjson.dumps(document("e-3", unique, email="b@example.com")))
    await eventually(lambda: world.events(unique), timeout_s=30)
    assert restarts(await world.cli("status", "--json")) == before


def restarts(status: str) -> dict[str, int]:
    return {each["name"]: each["restarts"] for each in json.loads(status)["processes"] if "intake" in each["name"]}
