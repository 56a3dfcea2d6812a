"""What other registries' schemas and generators write, beyond our own forms: it is read, or refused by field."""

from __future__ import annotations

import json
from io import BytesIO
from typing import Any

import pytest
from fastavro import parse_schema, schemaless_writer
from hypothesis import given
from hypothesis import strategies as st

from infra.outcomes import Reason
from schemas.codec import Codec, DecodeError
from schemas.foreign_schemas import without_defaults
from schemas.registry import registry, without_logical_types
from tests.events import NOW, record

FRAME = b"\x00" + (4242).to_bytes(4, "big")
MEETING = registry().events["meeting_booked"].full_schema
FORM = registry().events["form_submitted"].full_schema
MILLIS = {"type": "long", "logicalType": "timestamp-millis"}
SIZE = {"type": "enum", "name": "size", "symbols": ["small", "large"]}


def decoded(schema: dict[str, Any], datum: dict[str, Any]) -> dict[str, Any]:
    out = BytesIO()
    schemaless_writer(out, parse_schema(without_logical_types(without_defaults(schema))), datum)
    return Codec(fetch=lambda _: json.dumps(schema)).decode(FRAME + out.getvalue()).record


def with_field(schema: dict[str, Any], name: str, **changes: Any) -> dict[str, Any]:
    return schema | {"fields": [own | changes if own["name"] == name else own for own in schema["fields"]]}


def meeting(**own: Any) -> dict[str, Any]:
    return record("meeting_booked", email="ada@example.com", starts_at=NOW) | own


def form(**own: Any) -> dict[str, Any]:
    return record("form_submitted", email="ada@example.com", form_id="demo") | own


@pytest.mark.parametrize("default", [None, 7, {"a": 1}, ["x"]])
@pytest.mark.parametrize("of", ["string", ["string", "null"], ["null", "string"]])
def test_a_default_of_the_writer_is_not_used(of: Any, default: Any) -> None:
    schema = with_field(MEETING, "title", type=of, default=default)
    assert decoded(schema, meeting(title="Demo")) == meeting(title="Demo")


@given(st.dictionaries(st.text(max_size=3), st.none() | st.text(max_size=3), max_size=4))
def test_null_in_a_map_is_absent(answers: dict[str, str | None]) -> None:
    schema = with_field(FORM, "answers", type={"type": "map", "values": ["null", "string"]})
    wanted = {key: value for key, value in answers.items() if value is not None}
    assert decoded(schema, form(answers=answers)) == form(answers=wanted)


def test_a_map_that_is_null_is_empty_and_null_in_a_list_is_no_item() -> None:
    schema = with_field(FORM, "answers", type=["null", {"type": "map", "values": "string"}])
    assert decoded(schema, form(answers=None)) == form()
    update = registry().events["lead_updated"].full_schema
    made = record("lead_updated", email="ada@example.com")
    schema = with_field(update, "cleared", type={"type": "array", "items": ["null", "string"]})
    assert decoded(schema, made | {"cleared": [None, "title"]}) == made | {"cleared": ["title"]}


def test_the_symbol_of_an_enum_is_a_string_everywhere() -> None:
    for of in (SIZE, ["null", SIZE], ["string", SIZE]):
        assert decoded(with_field(MEETING, "title", type=of), meeting(title="large")) == meeting(title="large")
    schema = with_field(FORM, "title", type=SIZE)
    schema = with_field(schema, "answers", type={"type": "map", "values": ["null", "leadstream.size"]})
    made = form(title="small", answers={"a": "large", "b": None})
    assert decoded(schema, made) == form(title="small", answers={"a": "large"})


@pytest.mark.parametrize(
    ("of", "value"),
    [
        (MILLIS, 2**63 - 1),
        (MILLIS, -(2**63)),
        (["null", MILLIS], 10**17),
        ({"type": "int", "logicalType": "date"}, 2**31 - 1),
    ],
)
def test_a_time_that_cannot_be_converted_is_an_invalid_field(of: Any, value: int) -> None:
    with pytest.raises(DecodeError) as raised:
        decoded(with_field(MEETING, "starts_at", type=of), meeting(starts_at=value))
    assert raised.value.dead.reason is Reason.INVALID_FIELD
    assert [problem.path for problem in raised.value.dead.problems] == ["/starts_at"]


def test_the_time_of_the_envelope_is_named_too() -> None:
    schema = json.loads(json.dumps(MEETING).replace("timestamp-micros", "timestamp-millis"))
    made = meeting(starts_at=NOW // 1000)
    made["envelope"]["occurred_at"] = NOW * 1000
    with pytest.raises(DecodeError) as raised:
        decoded(schema, made)
    assert raised.value.dead.reason is Reason.INVALID_FIELD
    assert raised.value.dead.problems[0].path == "/envelope/occurred_at"


@pytest.mark.parametrize(
    ("of", "value"),
    [("long", 7), ("boolean", True), ({"type": "array", "items": "string"}, ["x"]), (["null", "double"], 7.5)],
)
def test_a_value_of_another_type_is_refused_by_its_field(of: Any, value: Any) -> None:
    with pytest.raises(DecodeError) as raised:
        decoded(with_field(MEETING, "title", type=of), meeting(title=value))
    assert raised.value.dead.reason is Reason.UNKNOWN_SCHEMA
    assert raised.value.dead.problems[0].path == "/title"


def test_types_of_one_name_in_two_namespaces_are_different_types() -> None:
    """The time of ``one.envelope`` is in milliseconds, that of ``two.envelope`` in microseconds."""
    ours = next(own["type"] for own in MEETING["fields"] if own["name"] == "envelope")
    times = {name: json.loads(json.dumps(ours)) | {"name": "envelope", "namespace": name} for name in ("one", "two")}
    times["one"] = json.loads(json.dumps(times["one"]).replace("timestamp-micros", "timestamp-millis"))
    made = meeting()
    in_millis = json.loads(json.dumps(made["envelope"])) | {"occurred_at": NOW // 1000}
    first, second = {"name": "first", "type": times["one"]}, {"name": "second", "type": times["two"]}
    for used, written in (("one", in_millis), ("two", made["envelope"])):
        schema = with_field(MEETING, "envelope", type=f"{used}.envelope")
        for fields in ([first, second], [second, first]):
            every = schema | {"fields": [*fields, *schema["fields"]]}
            others = {"first": in_millis, "second": made["envelope"]}
            assert decoded(every, made | others | {"envelope": written}) == made


def test_a_name_without_a_namespace_belongs_to_the_namespace_around_it() -> None:
    inner = {"type": "record", "name": "other.holder", "fields": [{"name": "x", "type": SIZE}]}
    schema = with_field(MEETING, "title", type="other.size")
    every = schema | {"fields": [{"name": "first", "type": inner}, *schema["fields"]]}
    assert decoded(every, meeting(title="small") | {"first": {"x": "large"}}) == meeting(title="small")
