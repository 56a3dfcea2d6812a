"""The splitter finds the elements of any array, in at most a bounded number of steps."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.ingest.elements import MAX_STEPS, elements

texts = st.text('a"\\[]{},:é\n ', max_size=6)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


@given(values=st.lists(values, max_size=6), indent=st.sampled_from([None, 1]), ascii_only=st.booleans())
@settings(max_examples=500, deadline=None)
def test_the_elements_of_an_array_are_found(values: list[Any], indent: int | None, ascii_only: bool) -> None:
    array = json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode()
    for body in (array, b' {"a": [{}], "events" : ' + array + b' , "b": "]"} '):
        found = elements(body)
        assert found is not None
        assert [json.loads(text) for text in found] == values


@given(values=st.lists(values, min_size=1, max_size=6), data=st.data())
@settings(max_examples=300, deadline=None)
def test_a_truncated_array_has_no_elements(values: list[Any], data: st.DataObject) -> None:
    array = json.dumps(values).encode()
    assert elements(array[: data.draw(st.integers(0, len(array) - 1))]) is None


@pytest.mark.parametrize(
    "body",
    [
        "",
        "NaN",
        "{}",
        '"["',
        "[}",
        "[1}",
        "[1]]",
        "[1] 2",
        '{"events": 1}',
        '{"events": [NaN]',
        '{"events": [NaN], "a"}',
    ],
)
def test_what_is_no_array_of_elements_is_not_split(body: str) -> None:
    assert elements(body.encode()) is None


def test_an_event_with_a_field_events_is_one_event() -> None:
    assert elements(b'{"type": "form_submitted", "events": [NaN]}') is None


def test_only_the_events_of_an_envelope_may_be_invalid() -> None:
    assert elements(b'{"sent_at": NaN, "events": [1]}') is None
    assert elements(b'{"events": [NaN], "events": [1, NaN]}') is None


def test_the_number_of_steps_is_bounded() -> None:
    assert len(elements(b"[" + b"{}," * (MAX_STEPS // 3 - 1) + b"NaN]") or ()) == MAX_STEPS // 3
    assert elements(b"[" + b"{}," * MAX_STEPS + b"NaN]") is None
    assert elements(b'{"events":[' + b"{}," * (MAX_STEPS // 2) + b"NaN]}") is None


@pytest.mark.parametrize("repeated", [b"[", b'"', b"\\", b'"\\', b"{", b",", b" ", b'""', b'"a":'])
def test_a_body_of_one_token_is_not_split(repeated: bytes) -> None:
    assert elements(repeated * 500_000) is None
    assert elements(b'["' + repeated * 500_001) is None
