"""The codec decodes valid payloads, and rejects every other payload with a reason."""

from __future__ import annotations

import io
import json

import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.outcomes import Reason
from schemas.codec import HEADER, Codec, DecodeError
from schemas.registry import registry
from tests.events import payload, record

CODEC = Codec()
GOOD = payload("form_submitted", email="ada@example.com", form_id="demo", answers={"size": "10"}, employees=4)


def reason_of(value: bytes) -> Reason:
    with pytest.raises(DecodeError) as caught:
        CODEC.decode(value)
    return caught.value.dead.reason


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"\x07 no event", Reason.NOT_AVRO),
        (GOOD[:-1], Reason.NOT_AVRO),
        (GOOD + b"\0", Reason.NOT_AVRO),
        (b"\xc3\x01" + b"\xff" * 8 + GOOD[HEADER:], Reason.UNKNOWN_SCHEMA),
        (b"\0\0\0\0\x07" + GOOD[HEADER:], Reason.UNKNOWN_SCHEMA),
        (b'{"type": ', Reason.NOT_JSON),
        (b'{"type": "form_submited"}', Reason.UNKNOWN_EVENT_TYPE),
        (b'{"type": "page_viewed"}', Reason.INVALID_FIELD),
    ],
)
def test_an_invalid_payload_is_rejected_with_its_reason(value: bytes, reason: Reason) -> None:
    assert reason_of(value) is reason


@given(st.data())
@settings(max_examples=500, deadline=None)
def test_broken_bytes_raise_nothing_but_decode_error(data: st.DataObject) -> None:
    mutated = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 5))):
        mutated[data.draw(st.integers(HEADER, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(mutated[: data.draw(st.integers(0, len(mutated)))])
    try:
        assert CODEC.decode(cut).type == "form_submitted"
    except DecodeError as error:
        assert error.dead.problems  # noqa: PT017 - the mutated bytes may or may not be valid


@given(
    st.dictionaries(st.text(max_size=8), st.text(max_size=20), max_size=5),
    st.text(max_size=30),
    st.none() | st.integers(-(2**63), 2**63 - 1),
)
@settings(max_examples=200, deadline=None)
def test_any_value_that_fits_the_schema_round_trips(answers: dict[str, str], text: str, number: int | None) -> None:
    event = record("form_submitted", email="a@example.com", first_name=text, answers=answers, employees=number)

    assert CODEC.decode(CODEC.encoder("form_submitted")(event)).record == event


def test_a_schema_of_an_external_registry_is_fetched_once_and_resolved_to_the_current_version() -> None:
    fetched: list[int] = []
    kind = registry().events["page_viewed"]
    older = {**kind.full_schema, "fields": [f for f in kind.full_schema["fields"] if f["name"] != "referrer"]}

    def fetch(schema_id: int) -> str:
        fetched.append(schema_id)
        if schema_id != 7:
            raise KeyError(schema_id)
        return json.dumps(older)

    codec = Codec(fetch=fetch)
    stream = io.BytesIO()
    event = record("page_viewed", email="a@example.com", url="https://www.example.com")
    fastavro.schemaless_writer(stream, fastavro.parse_schema(older), event)
    framed = b"\0" + (7).to_bytes(4, "big") + stream.getvalue()

    assert codec.decode(framed).record == event
    assert codec.decode(framed).record == event
    assert fetched == [7]
    with pytest.raises(DecodeError):
        codec.decode(b"\0" + (8).to_bytes(4, "big") + stream.getvalue())
