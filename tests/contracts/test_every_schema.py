"""The contract of every schema. The schemas are found by folder."""

from __future__ import annotations

import io
import time

import fastavro
import orjson
import pytest

from schemas import rules
from schemas.codec import HEADER, Codec, container, container_header
from schemas.registry import EventType, RecordType, registry

CODEC = Codec()
EVENTS = list(registry().events.values())
TYPES = list(registry().types.values())
NOW = time.time_ns() // 1000


@pytest.mark.parametrize("form", TYPES, ids=lambda form: form.name)
def test_the_example_round_trips(form: RecordType) -> None:
    decoded = CODEC.decode(CODEC.encoder(form.name)(form.example))

    assert decoded.type == form.name
    assert decoded.record == {**{f["name"]: f.get("default") for f in form.full_schema["fields"]}, **form.example}


@pytest.mark.parametrize("form", TYPES, ids=lambda form: form.name)
def test_a_container_of_joined_payloads_can_be_read_by_avro(form: RecordType) -> None:
    payload = CODEC.encoder(form.name)(form.example)

    rows = list(fastavro.reader(io.BytesIO(container(container_header(form), [payload] * 3))))

    assert len(rows) == 3


@pytest.mark.parametrize("form", TYPES, ids=lambda form: form.name)
def test_it_has_a_description(form: RecordType) -> None:
    assert form.doc


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.name)
def test_an_event_decodes_to_the_same_record_from_all_three_wire_formats(kind: EventType) -> None:
    single = CODEC.encoder(kind.name)(kind.example)
    confluent = b"\0" + kind.confluent_id.to_bytes(4, "big") + single[HEADER:]
    text = orjson.dumps({"type": kind.name, **kind.example})

    assert CODEC.decode(single) == CODEC.decode(confluent) == CODEC.decode(text)


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.name)
def test_the_example_of_an_event_is_valid(kind: EventType) -> None:
    record = CODEC.decode(CODEC.encoder(kind.name)(kind.example)).record
    result = rules.check_event(kind, record, NOW, 0)

    assert isinstance(result, bytes), result
    assert orjson.loads(result) == {name: value for name, value in record.items() if name != "envelope"}


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.name)
def test_a_field_for_personal_data_of_the_lead_is_marked_as_pii(kind: EventType) -> None:
    personal = {f["name"] for f in registry().lead.source["fields"] if f.get("pii")}
    unmarked = [
        f["name"] for f in kind.source["fields"] if kind.lead_fields.get(f["name"]) in personal and not f.get("pii")
    ]

    assert unmarked == []


def test_no_two_schema_versions_share_a_fingerprint_or_an_id() -> None:
    versions = list(registry().all_versions())

    assert len({version.fingerprint for version in versions}) == len(versions)
    assert len({version.confluent_id for version in versions}) == len(versions)
