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


@pytest.mark.parametrize("bad", [b"NaN", b'"\\ud83d"', b"[1, -Infinity]", b'{"a": [[[[[[]]]]]], 01}', b"1e999", b"nul"])
def test_a_bad_member_beside_the_events_costs_none_of_them(bad: bytes) -> None:
    for body in (b'{"sentAt":%s,"events":[1, {"a": 2}]}', b'{"events":[1, {"a": 2}], "context": %s }'):
        assert elements(body % bad) == [b"1", b' {"a": 2}']


def test_an_event_is_not_split_whatever_its_other_members_are() -> None:
    assert elements(b'{"t\\u0079pe": NaN, "events": [1]}') is None
    assert elements(b'{"events": [NaN], "events": [1, NaN]}') is None
    assert elements(b'{"\\u0065vents": [1], "events": [NaN]}') is None


def test_the_number_of_steps_is_bounded() -> None:
    assert len(elements(b"[" + b"{}," * (MAX_STEPS - 1) + b"NaN]") or ()) == MAX_STEPS
    assert elements(b"[" + b"{}," * MAX_STEPS + b"NaN]") is None
    assert elements(b'{"events":[' + b"{}," * MAX_STEPS + b"NaN]}") is None


@pytest.mark.parametrize(
    "nested",
    [
        b"[" * 130_000 + b"]" * 130_000,
        b"[[[[[1]]]],[2]]," * 16_000,
        b"[[1,[2]],{}]," * 20_000,
        b'{"a":' * 43_000 + b"}" * 43_000,
        b"[[[[[[]]]]]]," * 20_000,
    ],
)
def test_an_event_of_many_nested_arrays_costs_only_itself(nested: bytes) -> None:
    found = elements(b'[{"a": 1},[%s],NaN,{"b": [[[[[[[0]]]]]]]}]' % nested.rstrip(b","))

    assert found is not None
    assert [found[0], *found[2:]] == [b'{"a": 1}', b"NaN", b'{"b": [[[[[[[0]]]]]]]}']


@pytest.mark.parametrize("repeated", [b"[", b'"', b"\\", b'"\\', b"{", b",", b" ", b'""', b'"a":'])
def test_a_body_of_one_token_is_not_split(repeated: bytes) -> None:
    assert elements(repeated * 500_000) is None
    assert elements(b'["' + repeated * 500_001) is None
