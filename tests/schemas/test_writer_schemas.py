"""Schemas of an external registry: known ids, unknown ids, and an unavailable registry."""

from __future__ import annotations

import json

import httpx
import pytest

from infra.errors import DependencyUnavailable
from schemas.codec import Codec
from schemas.registry import registry
from schemas.writer_schemas import schema_fetch
from tests.events import CODEC, record

REQUESTED: list[str] = []


def respond(request: httpx.Request) -> httpx.Response:
    """Respond as the documented API does."""
    REQUESTED.append(request.url.path)
    match int(request.url.path.rpartition("/")[2]):
        case 7:
            return httpx.Response(200, json={"schema": json.dumps(registry().events["page_viewed"].full_schema)})
        case 8:
            return httpx.Response(200, json={"schema": 'syntax = "proto3";', "schemaType": "PROTOBUF"})
        case 9:
            return httpx.Response(200, json={"id": 9})
        case 502:
            return httpx.Response(200, text="<html>a proxy</html>")
        case 503:
            raise httpx.ConnectError("refused", request=request)
        case asked:
            status = asked if 400 <= asked < 600 else 404
            return httpx.Response(status, json={"error_code": status * 100 + 1, "message": "not found, or an error"})


@pytest.fixture
def codec() -> Codec:
    REQUESTED.clear()
    return Codec(fetch=schema_fetch("https://registry.example.com/api/", transport=httpx.MockTransport(respond)))


def framed(schema_id: int) -> bytes:
    event = record("page_viewed", email="a@example.com", url="https://www.example.com")
    return b"\0" + schema_id.to_bytes(4, "big") + CODEC.encoder("page_viewed")(event)[10:]


def test_a_known_schema_is_requested_once(codec: Codec) -> None:
    assert codec.decode(framed(7)) == codec.decode(framed(7))
    assert REQUESTED == ["/api/schemas/ids/7"]


def test_an_id_of_this_installation_can_still_be_decoded(codec: Codec) -> None:
    own = registry().events["page_viewed"].confluent_id

    assert codec.decode(framed(own)).type == "page_viewed"


@pytest.mark.parametrize("schema_id", [8, 9, 400, 403, 404, 410, 422])
def test_an_unknown_schema_or_one_that_is_not_avro_is_a_dead_letter(codec: Codec, schema_id: int) -> None:
    with pytest.raises(Exception, match=f"no schema with id {schema_id}"):
        codec.decode(framed(schema_id))


@pytest.mark.parametrize("schema_id", [8, 9, 403, 404])
def test_an_unknown_id_is_not_requested_for_each_record(codec: Codec, schema_id: int) -> None:
    for _ in range(3):
        with pytest.raises(Exception, match=f"no schema with id {schema_id}"):
            codec.decode(framed(schema_id))
    assert len(REQUESTED) == 1


@pytest.mark.parametrize("schema_id", [401, 407, 408, 429, 500, 502, 503])
def test_an_unavailable_registry_is_reported_as_a_dependency(codec: Codec, schema_id: int) -> None:
    with pytest.raises(DependencyUnavailable, match="the schema registry is unavailable"):
        codec.decode(framed(schema_id))


def test_without_a_url_no_schema_is_fetched() -> None:
    assert schema_fetch("") is None
