"""POST /v1/events and /v1/validate with a real broker."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any
from uuid import UUID, uuid4

import httpx
import orjson
import pytest
from prometheus_client import generate_latest

from api.health import kafka_unavailable
from infra.kafka import client as kafka
from infra.kafka_settings import KafkaSettings
from schemas.codec import Codec
from schemas.registry import registry

pytestmark = pytest.mark.integration
JSON = {"content-type": "application/json"}
NDJSON = {"content-type": "application/x-ndjson"}


def event(**changes: Any) -> dict[str, Any]:
    envelope = {"event_id": uuid4().hex, "tenant": "acme"} | changes.pop("envelope", {})
    return {"type": "form_submitted", "envelope": envelope, "identifiers": {"email": "ada@example.com"}} | changes


async def send(client: httpx.AsyncClient, body: Any, path: str = "/v1/events", **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await client.post(path, content=content, headers=JSON | {k.replace("_", "-"): v for k, v in headers.items()})


async def test_an_accepted_event_is_on_the_broker_as_avro(client: httpx.AsyncClient, record_at: Any) -> None:
    sent = event(first_name="Zoë 木 🙂")
    response = await send(client, sent)
    assert response.status_code == 202
    (item,) = response.json()["events"]
    assert (response.json()["accepted"], item["status"], item["event_id"]) == (
        1,
        "accepted",
        sent["envelope"]["event_id"],
    )
    message = record_at(item)
    decoded = Codec().decode(message.value())
    assert message.value()[:2] == b"\xc3\x01"
    assert message.key() == b"acme:ada@example.com"
    assert (decoded.type, decoded.record["first_name"]) == ("form_submitted", "Zoë 木 🙂")


async def test_a_missing_event_id_time_and_source_are_added(client: httpx.AsyncClient, record_at: Any) -> None:
    before = time.time_ns() // 1000
    response = await send(client, event(envelope={"event_id": None}))
    (item,) = response.json()["events"]
    envelope = Codec().decode(record_at(item).value()).record["envelope"]
    assert UUID(item["event_id"]).version == 7
    assert (envelope["event_id"], envelope["source"]) == (item["event_id"], "api")
    assert before <= envelope["occurred_at"] <= time.time_ns() // 1000


@pytest.mark.parametrize(
    ("identifiers", "key"),
    [
        ({"external_id": "u-1", "email": "a@example.com"}, b"acme:u-1"),
        ({"email": " A@Example.com", "phone": "+1"}, b"acme:a@example.com"),
        ({"anonymous_id": "anon"}, b"acme:anon"),
        ({"crm_ids": {"z": "9", "hubspot": "501"}}, b"acme:hubspot:501"),
    ],
)
async def test_the_key_is_tenant_and_first_identifier(
    client: httpx.AsyncClient, record_at: Any, identifiers: dict[str, Any], key: bytes
) -> None:
    response = await send(client, event(identifiers=identifiers))
    assert record_at(response.json()["events"][0]).key() == key


async def test_every_wrong_field_of_every_event_is_named_and_the_rest_is_accepted(client: httpx.AsyncClient) -> None:
    wrong = event(emploees=3, first_name=7, envelope={"tenant": None})
    response = await send(client, {"events": [event(), wrong, 3, event(identifiers={})]})
    assert response.status_code == 207
    body = response.json()
    assert body["accepted"] == 1
    assert [item["status"] for item in body["events"]] == ["accepted", "rejected", "rejected", "rejected"]
    assert {p["path"] for p in body["events"][1]["problems"]} == {"/emploees", "/first_name", "/envelope/tenant"}
    assert body["events"][3]["reason"] == "no_identifier"


async def test_if_no_event_is_valid_the_status_is_400_with_a_path_to_the_explanation(client: httpx.AsyncClient) -> None:
    response = await send(client, [event(type="form_submittd")])
    assert (response.status_code, response.json()["accepted"]) == (400, 0)
    assert "form_submitted" in response.json()["events"][0]["problems"][0]["message"]
    docs = await client.get(response.json()["error"]["docs"])
    assert docs.json()["code"] == "none_accepted"


async def test_a_response_contains_no_value_of_the_request(client: httpx.AsyncClient) -> None:
    response = await send(client, event(identifiers={"email": "secret-address"}, first_name=["secret-name"]))
    assert response.status_code == 400
    assert "secret" not in response.text


async def test_each_line_of_ndjson_is_an_event(client: httpx.AsyncClient) -> None:
    body = b"\n".join([orjson.dumps(event()), b"", b"{broken", orjson.dumps(event()), b""])
    response = await client.post("/v1/events", content=body, headers=NDJSON)
    assert response.status_code == 207
    assert [item["status"] for item in response.json()["events"]] == ["accepted", "rejected", "accepted"]
    assert response.json()["events"][1]["reason"] == "not_json"


@pytest.mark.parametrize("kind", ["application/avro", "application/vnd.leadstream"])
async def test_an_avro_payload_is_produced_unchanged(client: httpx.AsyncClient, record_at: Any, kind: str) -> None:
    payload = Codec().encoder("form_submitted")(registry().events["form_submitted"].example)
    response = await client.post("/v1/events", content=payload, headers={"content-type": kind})
    assert response.status_code == 202
    assert record_at(response.json()["events"][0]).value() == payload
    cut = await client.post("/v1/events", content=payload[:-3], headers={"content-type": kind})
    assert (cut.status_code, cut.json()["events"][0]["reason"]) == (400, "not_avro")


async def test_a_record_type_of_the_pipeline_is_not_an_event_type(client: httpx.AsyncClient) -> None:
    payload = Codec().encoder("crm_wanted")({"tenant": "a", "lead_id": "b", "version": 1, "decided_at": 1})
    response = await client.post("/v1/events", content=payload, headers={"content-type": "application/avro"})
    assert (response.status_code, response.json()["events"][0]["reason"]) == (400, "unknown_event_type")


async def test_the_traceparent_is_a_header_of_the_record(client: httpx.AsyncClient, record_at: Any) -> None:
    parent = f"00-{uuid4().hex}-{'1' * 16}-01"
    response = await send(client, event(), traceparent=parent)
    assert record_at(response.json()["events"][0]).headers() == [("traceparent", parent.encode())]
    response = await send(client, event(), traceparent="garbage\x01")
    assert record_at(response.json()["events"][0]).headers() in (None, [])


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "no_events"),
        (b"[]", 400, "no_events"),
        (b'{"events": []}', 400, "no_events"),
        (b'{"events": {}}', 400, "not_json"),
        (b"{", 400, "not_json"),
        (b"\xff\xfe\x00", 400, "not_json"),
        (b'"\\ud800"', 400, "not_json"),
        (b"[" * 100_000, 400, "not_json"),
        (b"NaN", 400, "not_json"),
        (b"null", 400, "none_accepted"),
        (b"{}", 400, "none_accepted"),
        (b'{"type": {}, "envelope": []}', 400, "none_accepted"),
        (b'{"type": "form_submitted", "envelope": {"event_id": 7, "tenant": "a"}}', 400, "none_accepted"),
        (b"[" + b"{}," * 500 + b"{}]", 413, "too_many_events"),
        (b" " * (4 * 1024 * 1024 + 1), 413, "too_large"),
    ],
)
async def test_an_invalid_body_is_refused_with_code_and_message(
    client: httpx.AsyncClient, body: bytes, status: int, code: str
) -> None:
    response = await send(client, body)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert response.json()["error"]["message"]


async def test_a_body_without_content_length_is_limited_too(client: httpx.AsyncClient) -> None:
    async def endless() -> Any:
        while True:
            yield b" " * 65_536

    response = await client.post("/v1/events", content=endless(), headers=JSON)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "too_large")


async def test_only_the_event_that_is_too_large_is_rejected(client: httpx.AsyncClient) -> None:
    large = event(answers={f"k{i}": "x" * 8000 for i in range(40)})
    response = await send(client, [large, event()])
    assert response.status_code == 207
    assert [item.get("reason") for item in response.json()["events"]] == ["too_large", None]


async def test_other_types_and_encodings_are_refused(client: httpx.AsyncClient) -> None:
    form = await client.post(
        "/v1/events", content=b"a=b", headers={"content-type": "application/x-www-form-urlencoded"}
    )
    assert (form.status_code, form.json()["error"]["code"]) == (415, "unsupported_type")
    packed = await send(client, b"x", content_encoding="gzip")
    assert (packed.status_code, packed.json()["error"]["code"]) == (415, "unsupported_encoding")


async def test_validate_writes_nothing(client: httpx.AsyncClient) -> None:
    good = await send(client, event(), "/v1/validate")
    assert (good.status_code, good.json()["valid"]) == (200, 1)
    assert "offset" not in good.json()["events"][0]
    mixed = await send(client, [event(), {}], "/v1/validate")
    assert mixed.status_code == 207
    assert (await send(client, [{}], "/v1/validate")).status_code == 400


async def test_while_the_broker_is_unavailable_no_event_is_accepted(open_client: Any) -> None:
    client = await open_client("127.0.0.1:1", timeout_s=0.5)
    async with asyncio.timeout(30):
        response = await send(client, [event(), {}])
    body = response.json()
    assert (response.status_code, body["accepted"], body["error"]["code"]) == (503, 0, "kafka_unavailable")
    assert [item["status"] for item in body["events"]] == ["unknown", "rejected"]
    assert int(response.headers["retry-after"]) > 0
    unavailable = await kafka_unavailable(kafka.admin(KafkaSettings(kafka_bootstrap="127.0.0.1:1"), "test"))
    assert "Kafka" in unavailable
    assert (await send(client, event(), "/v1/validate")).status_code == 200


async def test_events_that_wait_for_the_broker_are_limited(open_client: Any) -> None:
    client = await open_client("127.0.0.1:1", timeout_s=2)
    batch = [event(answers={f"k{i}": "x" * 8000 for i in range(25)}) for _ in range(18)]
    async with asyncio.timeout(60):
        responses = await asyncio.gather(*[send(client, batch) for _ in range(25)])
    codes = {response.json()["error"]["code"] for response in responses}
    assert {response.status_code for response in responses} == {503}
    assert codes == {"kafka_unavailable", "overloaded"}


async def test_concurrent_requests_are_all_accepted(client: httpx.AsyncClient) -> None:
    responses = await asyncio.gather(*[send(client, [event() for _ in range(100)]) for _ in range(10)])
    items = [item for response in responses for item in response.json()["events"]]
    assert {response.status_code for response in responses} == {202}
    assert len({(item["partition"], item["offset"]) for item in items}) == 1000


async def test_readiness_metrics_and_unknown_paths(client: httpx.AsyncClient, stack: Any) -> None:
    assert not await kafka_unavailable(kafka.admin(stack.settings, "test"))
    await send(client, event())
    metrics = generate_latest().decode()
    assert 'leadstream_http_events_total{status="accepted"}' in metrics
    assert 'leadstream_http_requests_total{path="/v1/events",status="202"}' in metrics
    missing = await client.get("/v2/nothing")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    wrong = await client.get("/v1/events")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")


async def test_the_example_of_each_type_is_valid(client: httpx.AsyncClient) -> None:
    index = (await client.get("/v1/schemas")).json()
    assert {each["type"] for each in index["events"]} == set(registry().events)
    for each in index["events"]:
        one = (await client.get(each["url"])).json()
        response = await send(client, one["example"], "/v1/validate")
        assert response.status_code == 200, (each["type"], response.text)
    unknown = await client.get("/v1/schemas/nothing")
    assert (unknown.status_code, "form_submitted" in unknown.json()["error"]["message"]) == (404, True)
