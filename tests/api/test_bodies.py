"""Bodies of every shape: the good events are accepted, the bad ones named, the work and the answer stay small."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.api.hostile import KeptRecords, client_of, event

GOOD = orjson.dumps(event("good"))
JSON = {"content-type": "application/json"}
NDJSON = {"content-type": "application/x-ndjson"}
BAD_ELEMENTS = {
    "nan": b'{"type":"lead_updated","score":NaN}',
    "infinity": b'{"score":-Infinity}',
    "half an emoji": rb'{"title":"Great offer \ud83d"}',
    "half an emoji as a key": rb'{"\udc00":1}',
    "control character": b'{"title":"a\x01b"}',
    "line break in a string": b'{"title":"a\nb"}',
    "not UTF-8": b'{"title":"\xff"}',
    "encoded surrogate": b'{"title":"\xed\xa0\x80"}',
    "too large a number": b'{"score":1e999}',
    "leading zero": b'{"score":01}',
    "no digit before the point": b'{"score":.5}',
    "trailing comma": b'{"score":1,}',
    "single quotes": b"{'score':1}",
    "comment": b'{"score":1 /* one */}',
    "too deep": b'{"answers":' + b"[" * 2000 + b"]" * 2000 + b"}",
    "nothing": b" ",
}


@pytest.fixture
def kept() -> KeptRecords:
    return KeptRecords()


@pytest.fixture
async def client(kept: KeptRecords) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(kept) as opened:
        yield opened


@pytest.mark.parametrize("bad", BAD_ELEMENTS.values(), ids=BAD_ELEMENTS)
@pytest.mark.parametrize(
    "wrapped", [(b"[", b"]"), (b'{"events": [', b"]}"), (b'{"sent": [1], "events":[', b'], "x":{}} ')]
)
async def test_an_element_that_is_not_json_costs_itself_only(
    client: httpx.AsyncClient, kept: KeptRecords, bad: bytes, wrapped: tuple[bytes, bytes]
) -> None:
    body = wrapped[0] + b" , ".join([GOOD, bad, GOOD]) + wrapped[1]
    response = await client.post("/v1/events", content=body, headers=JSON)
    items = response.json()["events"]
    assert response.status_code == 207
    assert [item["status"] for item in items] == ["accepted", "rejected", "accepted"]
    assert (items[1]["index"], items[1]["reason"]) == (1, "not_json")
    assert items[1]["problems"][0]["message"].startswith("not JSON: ")
    assert len(kept.outputs) == 2


@pytest.mark.parametrize("cut", range(1, len(GOOD) * 2, 37))
async def test_of_a_truncated_array_no_event_is_accepted(
    client: httpx.AsyncClient, kept: KeptRecords, cut: int
) -> None:
    whole = b"[" + GOOD + b"," + GOOD + b"," + GOOD + b"]"
    response = await client.post("/v1/events", content=whole[:-cut], headers=JSON)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "not_json")
    assert not kept.outputs


@pytest.mark.parametrize(
    ("bad", "fix"), [(rb'{"title":"\ud83d"}', "half a character"), (b'{"score":NaN}', "send null")]
)
async def test_a_wrong_number_or_text_is_named_with_its_fix(client: httpx.AsyncClient, bad: bytes, fix: str) -> None:
    response = await client.post("/v1/events", content=b"[" + GOOD + b"," + bad + b"]", headers=JSON)
    message = response.json()["events"][1]["problems"][0]["message"]
    assert fix in message


@pytest.mark.parametrize("content", [GOOD, b"[" + GOOD + b"]", GOOD + b"\n" + GOOD])
@pytest.mark.parametrize("headers", [JSON, NDJSON, {"content-type": "text/plain;charset=UTF-8"}])
async def test_a_byte_order_mark_is_skipped(client: httpx.AsyncClient, content: bytes, headers: dict[str, str]) -> None:
    plain = await client.post("/v1/validate", content=content, headers=headers)
    marked = await client.post("/v1/validate", content=b"\xef\xbb\xbf" + content, headers=headers)
    assert marked.status_code == plain.status_code
    assert [i["status"] for i in marked.json().get("events", [])] == [
        i["status"] for i in plain.json().get("events", [])
    ]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("headers", [JSON, NDJSON])
async def test_another_encoding_is_refused_with_its_name(
    client: httpx.AsyncClient, encoding: str, headers: dict[str, str]
) -> None:
    response = await client.post("/v1/events", content=GOOD.decode().encode(encoding), headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "not_json")
    assert "UTF-16" in response.json()["error"]["message"]


SHAPES: dict[str, Any] = {
    "unknown fields": event() | {f"k{i:07}": 1 for i in range(300_000)},
    "unknown fields of the envelope": event(envelope={f"k{i:07}": 1 for i in range(200_000)}),
    "keys of a map": event(answers={f"k{i:07}": 1 for i in range(200_000)}),
    "keys of the context": event(envelope={"context": {f"k{i:07}": 1 for i in range(200_000)}}),
    "a long unknown field": event() | {"e" * 3_000_000: 1},
    "a long type": event(type="form" * 700_000),
    "a long event_id": event("e" * 3_000_000),
    "a long tenant": event(envelope={"tenant": "a" * 3_000_000}),
    "a long phone number": event(identifiers={"phone": "+1" * 1_500_000}),
    "a long time": event(envelope={"occurred_at": "2026-" * 600_000}),
    "a deep type": event(type=json.loads("[" * 200 + "]" * 200)),
    "large integers": event(envelope={"occurred_at": 2**64 - 1}, employees=2**63),
    "500 events with 40 long unknown fields each": [event() | {f"{i}" + "x" * 190: 1 for i in range(40)}] * 500,
    "500 events with maps of 200 wrong values": [event(answers={f"k{i}": 1 for i in range(200)})] * 500,
    "500 long event_ids": [event("é" * 3000)] * 500,
}


@pytest.mark.parametrize("document", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("alone", [True, False])
async def test_whatever_the_shape_the_answer_is_small_and_clear(
    client: httpx.AsyncClient, document: Any, alone: bool
) -> None:
    body = orjson.dumps(document if alone or isinstance(document, list) else [document])
    response = await client.post("/v1/events", content=body, headers=JSON)
    assert response.status_code == 400
    assert len(response.content) < (1_000_000 if isinstance(document, list) else 10_000)
    for index, item in enumerate(response.json()["events"]):
        assert item["index"] == index
        assert 1 <= len(item["problems"]) <= 22
        assert item["problems"][0]["message"]


@pytest.mark.parametrize("headers", [JSON, NDJSON, {"content-type": "application/avro"}])
async def test_an_event_of_megabytes_is_rejected_before_it_is_parsed(
    client: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    response = await client.post("/v1/events", content=b'{"a": "' + b"\x01" * 3_000_000, headers=headers)
    (item,) = response.json()["events"]
    assert (response.status_code, item["reason"]) == (400, "too_large")


async def test_the_largest_event_is_accepted_in_its_longest_spelling(client: httpx.AsyncClient) -> None:
    answers = {f"k{i}": "\x01" * 8000 for i in range(32)}  # six bytes of JSON for each
    body = json.dumps(event(answers=answers)).encode()
    assert len(body) > 1_500_000
    response = await client.post("/v1/events", content=body, headers=JSON)
    assert response.status_code == 202


async def test_other_requests_run_between_the_events_of_a_large_one(client: httpx.AsyncClient) -> None:
    # Each event has as many misspelt names as get a suggestion: about a tenth of a second of work in all.
    names: dict[str, Any] = {"frist_name": 1, "las_name": 2, "titel": 3}
    large = orjson.dumps([event(identifiers={"emial": 1, "fone": 2, "anonymousid": 3}, **names)] * 500)
    order: list[str] = []

    async def post() -> None:
        await client.post("/v1/events", content=large, headers=JSON)
        order.append("large")

    async def small() -> None:
        assert (await client.get("/v1/schemas")).status_code == 200
        order.append("small")

    await asyncio.gather(post(), small())
    assert order == ["small", "large"]


async def test_an_error_names_no_value_of_an_element(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/events", content=b'[{"email":"secret@example.com","a":NaN}]', headers=JSON)
    assert "secret" not in response.text


async def test_a_forged_traceparent_never_reaches_the_record(client: httpx.AsyncClient, kept: KeptRecords) -> None:
    valid = f"00-{'a' * 32}-{'b' * 16}-01"
    for sent in (valid, "x" * 1_000_000, valid + "-" + "x" * 1_000_000, f"ff-{'a' * 32}-{'b' * 16}-01", "é", valid * 9):
        response = await client.post("/v1/events", content=GOOD, headers=[(b"traceparent", sent.encode())])
        assert response.status_code == 202
    headers = [value for output in kept.outputs for _, value in output.headers or ()]
    assert headers[0] == valid.encode()
    assert all(len(value) == 55 for value in headers)


texts = st.text(max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | texts | st.just("x" * 9000),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from(["type", "envelope", "identifiers", "answers", "employees", "first_name", "emial"]) | texts


@given(
    changes=st.dictionaries(fields, values, max_size=4),
    envelope=st.dictionaries(
        st.sampled_from(["event_id", "tenant", "occurred_at", "source", "context"]) | texts, values, max_size=3
    ),
)
@settings(max_examples=300, deadline=None)
async def test_no_event_makes_the_server_fail(changes: dict[str, Any], envelope: dict[str, Any]) -> None:
    body = json.dumps([event("good"), event() | {"envelope": {"tenant": "acme"} | envelope} | changes]).encode()
    kept = KeptRecords()
    async with client_of(kept) as client:
        response = await client.post("/v1/events", content=body, headers=JSON)
    assert response.status_code in {202, 207}
    assert response.json()["events"][0]["status"] == "accepted"


@given(
    body=st.binary(max_size=60) | st.text('[]{}",:\\ \n01eNa', max_size=40).map(str.encode),
    kind=st.sampled_from(["application/json", "application/x-ndjson", "text/plain", "application/avro", ""]),
)
@settings(max_examples=300, deadline=None)
async def test_no_body_makes_the_server_fail(body: bytes, kind: str) -> None:
    async with client_of(KeptRecords()) as client:
        response = await client.post("/v1/events", content=body, headers={"content-type": kind})
        registered = await client.post("/subjects/a/versions", content=body, headers={"content-type": kind})
    assert response.status_code == 400
    assert registered.status_code in {409, 422, 400}
