"""Every body is limited in size and time, and no value of a request becomes a label of a metric."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import orjson
import pytest
from prometheus_client import REGISTRY
from starlette.requests import Request
from starlette.types import Message

from api import body
from api.errors import Refusal
from tests.api.hostile import KeptRecords, client_of

REGISTRY_PATHS = ["/subjects/leads.received-value", "/subjects/leads.received-value/versions"]
PATHS = ["/v1/events", "/v1/validate", *REGISTRY_PATHS]


def labels() -> set[str]:
    samples = (sample for metric in REGISTRY.collect() for sample in metric.samples)
    return {sample.labels["path"] for sample in samples if sample.name == "leadstream_http_requests_total"}


class Endless:
    """A body of blanks that counts what is read of it."""

    def __init__(self, size: int = 60_000_000) -> None:
        self.read = 0
        self.size = size

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self.read < self.size:
            self.read += 65_536
            yield b" " * 65_536


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_of_60_mb_is_refused_without_reading_it(path: str, announced: bool) -> None:
    sent = Endless()
    headers = {"content-type": "application/json"} | ({"content-length": str(sent.size)} if announced else {})
    async with client_of(KeptRecords()) as client:
        response = await client.post(path, content=sent, headers=headers)
    assert response.status_code == 413
    assert sent.read <= (0 if announced else 6_000_000)
    if path in REGISTRY_PATHS:
        assert response.headers["content-type"] == "application/vnd.schemaregistry.v1+json"
        assert (response.json()["error_code"], "larger than" in response.json()["message"]) == (413, True)
    else:
        assert response.json()["error"]["code"] == "too_large"


@pytest.mark.parametrize("length", ["-1", "1e9", "²", "9" * 5000, "x"])
async def test_a_content_length_that_is_no_number_is_refused(length: str) -> None:
    async with client_of(KeptRecords()) as client:
        for path in PATHS:
            response = await client.post(path, content=b"{}", headers=[(b"content-length", length.encode())])
            assert response.status_code == 413


@pytest.mark.parametrize("path", ["/live", "/config", "/subjects", "/v1/schemas", "/v1/errors/too_large", "/nothing"])
async def test_no_other_route_reads_a_body(path: str) -> None:
    sent = Endless()
    async with client_of(KeptRecords()) as client:
        await client.request("POST", path, content=sent)
        await client.request("GET", path, content=sent)
    assert sent.read == 0


def request_of(receive: object) -> Request:
    return Request({"type": "http", "method": "POST", "headers": []}, receive)  # type: ignore[arg-type]


async def test_a_body_that_does_not_arrive_in_time_is_refused() -> None:
    async def never() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(Refusal, match="did not arrive within") as refused:
        await body.read(request_of(never), 100, timeout_s=0.01)
    assert refused.value.code == "slow_request"


async def test_a_client_that_closes_the_connection_has_sent_nothing() -> None:
    async def closed() -> Message:
        return {"type": "http.disconnect"}

    with pytest.raises(Refusal, match="closed the connection"):
        await body.read(request_of(closed), 100)


async def test_a_compressed_schema_is_refused_in_the_format_of_the_registry() -> None:
    async with client_of(KeptRecords()) as client:
        response = await client.post(REGISTRY_PATHS[0], content=b"x", headers={"content-encoding": "gzip"})
    assert (response.status_code, response.json()["error_code"]) == (415, 415)


async def test_a_large_schema_is_refused_before_the_work_on_it() -> None:
    schema = orjson.dumps({"type": "enum", "name": "a", "symbols": [f"s{i}" for i in range(30_000)]}).decode()
    async with client_of(KeptRecords()) as client:
        response = await client.post(REGISTRY_PATHS[0], content=orjson.dumps({"schema": schema}))
    assert (response.status_code, "128 KiB" in response.json()["message"]) == (422, True)


async def test_requests_are_counted_by_route_never_by_path() -> None:
    before = labels()
    async with client_of(KeptRecords()) as client:
        for i in range(30):
            for method, path in (
                ("POST", f"/subjects/s{i}/versions"),
                ("GET", f"/subjects/s{i}/versions/{i}"),
                ("GET", f"/config/s{i}"),
                ("GET", f"/v1/schemas/s{i}"),
                ("DELETE", f"/subjects/s{i}"),
                ("GET", f"/scan/{i}"),
                ("GET", f"/subjects/s{i}/"),
                (f"M{i}", "/v1/events"),
            ):
                await client.request(method, path)
    added = labels() - before
    assert added <= {
        *("/subjects/{subject}/versions", "/subjects/{subject}/versions/{version}", "/config/{subject}"),
        *("/v1/schemas/{type}", "/v1/errors/{code}", "other", "/subjects/{subject}"),
    }
    assert "/subjects/{subject}/versions" in labels()


async def test_many_blank_lines_are_not_events() -> None:
    async with client_of(KeptRecords()) as client:
        headers = {"content-type": "application/x-ndjson"}
        blank = await client.post("/v1/events", content=b"\n \r\n" * 500_000, headers=headers)
        many = await client.post("/v1/events", content=b"1\n" * 2_000_000, headers=headers)
        one = await client.post("/v1/events", content=b"\n" * 2_000_000 + b"{}" + b"\n" * 1_000_000, headers=headers)
    assert (blank.json()["error"]["code"], many.json()["error"]["code"]) == ("no_events", "too_many_events")
    assert len(one.json()["events"]) == 1


@pytest.mark.parametrize("number", ["9" * 5000, "²", "%F0%9F%99%82", "%ff", "-2", "0", "01", "x" * 9000])
async def test_no_number_in_a_path_makes_the_server_fail(number: str) -> None:
    async with client_of(KeptRecords()) as client:
        by_id = await client.get(f"/schemas/ids/{number}")
        version = await client.get(f"/subjects/leadstream.form_submitted/versions/{number}")
        type_ = await client.get(f"/v1/schemas/{number}")
    assert [response.status_code for response in (by_id, version, type_)] == [404, 404, 404]
    assert (by_id.json()["error_code"], version.json()["error_code"]) == (40403, 40402)
    assert max(len(response.content) for response in (by_id, version, type_)) < 1000
