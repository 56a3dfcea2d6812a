"""Asking somebody else's registry: what is there, what is not, and what does not answer."""

from __future__ import annotations

import json

import httpx
import pytest

from infra.errors import DependencyUnavailable
from schemas.codec import Codec
from schemas.registry import registry
from schemas.writer_schemas import schema_fetch
from tests.events import CODEC, record

ASKED: list[str] = []


def answer(request: httpx.Request) -> httpx.Response:
    """Answer as the documented API does."""
    ASKED.append(request.url.path)
    match int(request.url.path.rpartition("/")[2]):
        case 7:
            return httpx.Response(200, json={"schema": json.dumps(registry().events["page_viewed"].full_schema)})
        case 8:
            return httpx.Response(200, json={"schema": 'syntax = "proto3";', "schemaType": "PROTOBUF"})
        case 500:
            return httpx.Response(500, json={"error_code": 50001, "message": "error in the backend data store"})
        case 502:
            return httpx.Response(200, text="<html>a proxy</html>")
        case 503:
            raise httpx.ConnectError("refused", request=request)
        case _:
            return httpx.Response(404, json={"error_code": 40403, "message": "Schema not found"})


@pytest.fixture
def codec() -> Codec:
    ASKED.clear()
    return Codec(fetch=schema_fetch("https://registry.example.com/api/", transport=httpx.MockTransport(answer)))


def framed(schema_id: int) -> bytes:
    event = record("page_viewed", email="a@example.com", url="https://www.example.com")
    return b"\0" + schema_id.to_bytes(4, "big") + CODEC.encoder("page_viewed")(event)[10:]


def test_what_the_registry_knows_is_asked_for_once(codec: Codec) -> None:
    assert codec.decode(framed(7)) == codec.decode(framed(7))
    assert ASKED == ["/api/schemas/ids/7"]


def test_an_id_of_our_own_is_still_read(codec: Codec) -> None:
    own = registry().events["page_viewed"].confluent_id

    assert codec.decode(framed(own)).type == "page_viewed"


@pytest.mark.parametrize("schema_id", [8, 404])
def test_what_is_unknown_or_no_avro_is_a_dead_letter(codec: Codec, schema_id: int) -> None:
    with pytest.raises(Exception, match=f"no schema with id {schema_id}"):
        codec.decode(framed(schema_id))


def test_an_unknown_id_is_not_asked_for_with_each_record(codec: Codec) -> None:
    for _ in range(3):
        with pytest.raises(Exception, match="no schema with id 404"):
            codec.decode(framed(404))
    assert len(ASKED) == 1


@pytest.mark.parametrize("schema_id", [500, 502, 503])
def test_a_registry_that_does_not_answer_is_waited_for(codec: Codec, schema_id: int) -> None:
    with pytest.raises(DependencyUnavailable, match="the schema registry is unavailable"):
        codec.decode(framed(schema_id))


def test_without_a_url_nobody_is_asked() -> None:
    assert schema_fetch("") is None
