"""Writer schemas of other registries: every one is resolved or refused, and times keep their meaning."""

from __future__ import annotations

import json
from io import BytesIO
from typing import Any

import pytest
from fastavro import parse_schema, schemaless_writer
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.outcomes import Reason
from schemas.codec import Codec, DecodeError
from schemas.registry import registry, without_logical_types
from tests.events import NOW, record

FRAME = b"\x00" + (4242).to_bytes(4, "big")
MEETING = registry().events["meeting_booked"].full_schema
TIME = {"type": "long", "logicalType": "timestamp-micros"}


def codec(schema: Any) -> Codec:
    text = schema if isinstance(schema, str) else json.dumps(schema)
    return Codec(fetch=lambda _: text)


def written(schema: dict[str, Any], datum: dict[str, Any]) -> bytes:
    out = BytesIO()
    schemaless_writer(out, parse_schema(without_logical_types(schema)), datum)
    return FRAME + out.getvalue()


def with_type(name: str, of: Any) -> dict[str, Any]:
    """Return the schema of meeting_booked in which the own field ``name`` has another type."""
    fields = [own | {"type": of} if own["name"] == name else own for own in MEETING["fields"]]
    return MEETING | {"fields": fields}


def meeting(**own: Any) -> dict[str, Any]:
    return record("meeting_booked", email="ada@example.com", starts_at=NOW) | own


def form(*fields: Any) -> dict[str, Any]:
    return {"type": "record", "name": "form_submitted", "namespace": "leadstream", "fields": list(fields)}


def nested(depth: int) -> str:
    inner = '{"type":"array","items":' * depth + '"string"' + "}" * depth
    return '{"type":"record","name":"form_submitted","fields":[{"name":"x","type":' + inner + "}]}"


def field(of: Any) -> dict[str, Any]:
    return {"name": "x", "type": of}


HOSTILE = {
    "refers to itself": form(field("form_submitted")),
    "refers to itself in a union": form(field(["null", "leadstream.form_submitted"])),
    "refers to itself by way of another": form(
        field({"type": "record", "name": "b", "fields": [field("form_submitted")]})
    ),
    "unresolved name": form(field("nowhere.at_all")),
    "required field missing": form({"name": "form_id", "type": "string"}),
    "no fields": {"type": "record", "name": "form_submitted"},
    "null fields": {"type": "record", "name": "form_submitted", "fields": None},
    "field twice": form(field("string"), field("string")),
    "array of nothing": form(field({"type": "array", "items": "null"})),
    "array of empty records": form(field({"type": "array", "items": {"type": "record", "name": "e", "fields": []}})),
    "map of fixed of no bytes": form(field({"type": "map", "values": {"type": "fixed", "name": "f", "size": 0}})),
    "huge fixed": form(field({"type": "fixed", "name": "f", "size": 2**60})),
    "negative fixed": form(field({"type": "fixed", "name": "f", "size": -5})),
    "empty enum": form(field({"type": "enum", "name": "e", "symbols": []})),
    "empty union": form(field([])),
    "type is a number": form(field(5)),
    "unknown record": {"type": "record", "name": "somebody_elses", "fields": []},
    "own record that is no event": {"type": "record", "name": "outcome", "fields": []},
    "not a record": '"string"',
    "a union": "[]",
    "a number": "5",
    "empty object": "{}",
    "not JSON": "{",
    "deep": nested(200),
    "deeper than Python's stack": nested(5_000),
    "brackets": "[" * 100_000,
    "two megabytes": json.dumps(form(field("string")) | {"doc": "x" * 2_000_000}),
    "lone surrogate": '{"type":"record","name":"form_submitted","fields":[{"name":"\\ud800","type":"string"}]}',
    "decimal as text": form({"name": "form_id", "type": {"type": "bytes", "logicalType": "decimal", "precision": 4}}),
}


@pytest.mark.parametrize("schema", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("body", [b"", b"\x02" * 50, b"\xff\xff\xff\xff\x0f" * 10, b"\x00" * 1000])
def test_any_writer_schema_gives_a_dead_letter_at_worst(schema: Any, body: bytes) -> None:
    decoder = codec(schema)
    for _ in range(2):  # also the second time, when it is known
        with pytest.raises(DecodeError) as raised:
            decoder.decode(FRAME + body)
        assert raised.value.dead.reason in (Reason.UNKNOWN_SCHEMA, Reason.NOT_AVRO)
        assert raised.value.dead.detail


def test_a_refused_schema_is_fetched_once() -> None:
    fetched: list[int] = []

    def fetch(schema_id: int) -> str:
        fetched.append(schema_id)
        return json.dumps(HOSTILE["refers to itself"])

    decoder = Codec(fetch=fetch)
    for _ in range(3):
        with pytest.raises(DecodeError, match="contains itself"):
            decoder.decode(FRAME)
    assert fetched == [4242]


@pytest.mark.parametrize(
    ("of", "value"),
    [
        (TIME, NOW),
        ("long", NOW),
        ({"type": "long", "logicalType": "timestamp-millis"}, NOW // 1000),
        ({"type": "long", "logicalType": "timestamp-nanos"}, NOW * 1000),
        (["null", {"type": "long", "logicalType": "timestamp-millis"}], NOW // 1000),
        ([{"type": "long", "logicalType": "timestamp-millis"}, "null"], NOW // 1000),
    ],
)
def test_a_time_in_another_unit_is_converted(of: Any, value: int) -> None:
    schema = with_type("starts_at", of)
    found = codec(schema).decode(written(schema, meeting(starts_at=value)))
    assert found.record == meeting()


def test_a_date_is_midnight() -> None:
    schema = with_type("starts_at", {"type": "int", "logicalType": "date"})
    found = codec(schema).decode(written(schema, meeting(starts_at=20_000)))
    assert found.record["starts_at"] == 20_000 * 86_400_000_000


def test_the_time_of_the_envelope_is_converted_too() -> None:
    schema = json.loads(json.dumps(MEETING).replace("timestamp-micros", "timestamp-millis"))
    made = meeting(starts_at=NOW // 1000)
    made["envelope"]["occurred_at"] //= 1000
    assert codec(schema).decode(written(schema, made)).record == meeting()


@pytest.mark.parametrize(
    "of",
    [
        {"type": "long", "logicalType": "local-timestamp-millis"},
        {"type": "long", "logicalType": "time-micros"},
        [{"type": "long", "logicalType": "timestamp-millis"}, {"type": "int", "logicalType": "date"}],
    ],
)
def test_a_time_that_cannot_be_converted_is_refused_by_its_path(of: Any) -> None:
    with pytest.raises(DecodeError, match="/starts_at") as raised:
        codec(with_type("starts_at", of)).decode(FRAME)
    assert raised.value.dead.reason is Reason.UNKNOWN_SCHEMA


def test_a_time_in_a_field_that_is_a_number_is_refused() -> None:
    schema = registry().events["lead_updated"].full_schema
    fields = [
        own | {"type": {"type": "long", "logicalType": "timestamp-millis"}} if own["name"] == "employees" else own
        for own in schema["fields"]
    ]
    with pytest.raises(DecodeError, match="/employees"):
        codec(schema | {"fields": fields}).decode(FRAME)


_TYPES = st.recursive(
    st.sampled_from(["null", "string", "long", "bytes", "boolean", "double", "form_submitted", "x", 1, None, {}])
    | st.sampled_from(
        [TIME, {"type": "fixed", "name": "f", "size": 3}, {"type": "enum", "name": "e", "symbols": ["a"]}]
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.builds(lambda items: {"type": "array", "items": items}, inner),
        st.builds(lambda values: {"type": "map", "values": values}, inner),
        st.builds(lambda of: {"type": "record", "name": "r", "fields": [{"name": "x", "type": of}]}, inner),
    ),
    max_leaves=8,
)


@given(st.lists(_TYPES, max_size=4), st.binary(max_size=60))
@settings(max_examples=400, deadline=None)
def test_no_schema_raises_anything_else(types: list[Any], body: bytes) -> None:
    names = ["envelope", "identifiers", "form_id", "answers"]
    schema = form(*({"name": name, "type": of} for name, of in zip(names, types, strict=False)))
    try:
        codec(schema).decode(FRAME + body)
    except DecodeError as error:
        assert error.dead.problems  # noqa: PT017 - either outcome is right, any other exception is not


@pytest.mark.parametrize(
    "of", [["null", "string"], ["string", "null"], [{"type": "string", "logicalType": "x"}, "null"]]
)
@pytest.mark.parametrize("value", ["Demonstration", None])
def test_null_means_the_default_and_unknown_logical_types_mean_nothing(of: Any, value: str | None) -> None:
    """As Java's tools generate them."""
    schema = with_type("title", of)
    found = codec(schema).decode(written(schema, meeting(title=value)))
    assert found.record == meeting(title=value or "")


def test_null_in_an_identifier_means_the_default() -> None:
    schema = json.loads(json.dumps(MEETING))
    fields = schema["fields"][1]["type"]["fields"]
    fields[0] |= {"type": ["null", "string"], "default": None}
    made = meeting()
    made["identifiers"]["external_id"] = None
    assert codec(schema).decode(written(schema, made)).record == meeting()


@pytest.mark.parametrize(
    "schema",
    [
        form(
            {
                "name": "x",
                "type": {"type": "array", "items": form(*(field("null") | {"name": f"n{i}"} for i in range(500)))},
            }
        ),
        form(*({"name": f"f{n}", "type": "string"} for n in range(3000))),
        form(field(["string"] * 50)),
    ],
    ids=["many fields of no bytes", "many fields", "a union of one type"],
)
def test_a_schema_that_costs_much_for_each_byte_is_refused(schema: Any) -> None:
    with pytest.raises(DecodeError, match="cannot be used"):
        codec(schema).decode(FRAME + b"\x02" * 100)


def test_a_byte_order_mark_before_json_is_skipped() -> None:
    text = json.dumps({"type": "meeting_booked", **meeting()}).encode()
    assert Codec().decode(b"\xef\xbb\xbf" + text).record == meeting()
