"""The schema registry of the API: over HTTP, and with the client of Confluent."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import uuid4

import httpx
import pytest
from confluent_kafka import Message, Producer
from confluent_kafka.schema_registry import (
    Schema,
    SchemaRegistryClient,
    SchemaRegistryError,
    topic_record_subject_name_strategy,
)
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

from schemas.codec import Codec
from schemas.registry import registry

pytestmark = pytest.mark.integration
TYPE = registry().events["form_submitted"]


async def test_a_known_schema_has_the_same_id_everywhere(client: httpx.AsyncClient) -> None:
    body = {"schema": json.dumps(TYPE.full_schema)}
    registered = await client.post("/subjects/leads.received-value/versions?normalize=false", json=body)
    looked_up = await client.post("/subjects/leads.received-value", json=body)
    assert registered.json()["id"] == looked_up.json()["id"] == TYPE.confluent_id
    by_id = await client.get(f"/schemas/ids/{TYPE.confluent_id}")
    assert json.loads(by_id.json()["schema"]) == TYPE.full_schema
    latest = await client.get("/subjects/leadstream.form_submitted/versions/latest")
    assert (latest.json()["id"], latest.json()["version"]) == (TYPE.confluent_id, 1)
    assert (await client.get("/config")).json() == {"compatibilityLevel": "FULL"}
    assert "leadstream.form_submitted" in (await client.get("/subjects")).json()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"[]", 422),
        (b'{"schema": 3}', 422),
        (b'{"schema": "{"}', 422),
        (b'{"schema": "{\\"type\\": \\"no_such\\"}"}', 422),
        (b'{"schema": "{}", "schemaType": "PROTOBUF"}', 422),
        (b'{"schema": "\\"string\\""}', 409),
    ],
)
async def test_an_unknown_or_invalid_schema_is_refused_with_code_and_message(
    client: httpx.AsyncClient, body: bytes, status: int
) -> None:
    response = await client.post("/subjects/leads.received-value/versions", content=body)
    assert response.status_code == status
    assert response.json()["error_code"]
    assert response.json()["message"]


async def test_unknown_ids_subjects_and_versions_have_the_codes_of_confluent(client: httpx.AsyncClient) -> None:
    for path, code in {
        "/schemas/ids/1": 40403,
        "/subjects/leads.received-value/versions/latest": 40401,
        "/subjects/leadstream.form_submitted/versions/9": 40402,
    }.items():
        response = await client.get(path)
        assert (response.status_code, response.json()["error_code"]) == (404, code)


def _example(name: str) -> dict[str, Any]:
    return registry().events[name].example | {"envelope": TYPE.example["envelope"] | {"event_id": uuid4().hex}}


def _produce(url: str, key: str, bootstrap: str) -> list[Message]:
    """Write every event type as an upstream app would: only with the serializer of Confluent."""
    context = SerializationContext("leads.received", MessageField.VALUE)
    producer = Producer({"bootstrap.servers": bootstrap, "acks": "all"})
    delivered: list[Message] = []
    with SchemaRegistryClient({"url": url, "basic.auth.user.info": f"{key}:"}) as client:
        for auto in (True, False):
            for name in registry().events:
                schema = client.get_latest_version(f"leadstream.{name}").schema.schema_str
                conf = {"auto.register.schemas": auto} | (
                    {} if auto else {"subject.name.strategy": topic_record_subject_name_strategy}
                )
                value = AvroSerializer(client, schema, conf=conf)(_example(name), context)
                read = AvroDeserializer(client)(value, context)
                assert read["envelope"]["tenant"] == TYPE.example["envelope"]["tenant"]
                producer.produce("leads.received", value, on_delivery=lambda _, message: delivered.append(message))
    assert producer.flush(20) == 0
    return delivered


async def test_a_stock_confluent_producer_needs_no_other_registry(running: Any, stack: Any) -> None:
    async with running() as (_, url, key):
        delivered = await asyncio.to_thread(_produce, url, key, stack.settings.kafka_bootstrap)
    assert [message.error() for message in delivered] == [None] * len(delivered)
    read = [Codec().decode(message.value() or b"") for message in delivered]
    assert sorted(decoded.type for decoded in read) == sorted([*registry().events, *registry().events])


async def test_the_error_of_an_unknown_schema_names_the_fix(running: Any) -> None:
    schema = json.dumps({"type": "record", "name": "lead_found", "fields": [{"name": "x", "type": "string"}]})
    async with running() as (_, url, key):
        with (
            SchemaRegistryClient({"url": url, "basic.auth.user.info": f"{key}:"}) as client,
            pytest.raises(SchemaRegistryError, match="schemas/events") as refused,
        ):
            await asyncio.to_thread(client.register_schema, "leads.received-value", Schema(schema, "AVRO"))
    assert refused.value.http_status_code == 409
