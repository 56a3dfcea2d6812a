"""Batches of records as the broker returns them, with header names that are not UTF-8."""

from __future__ import annotations

from typing import Any

import pytest
from aiokafka.consumer.fetcher import PartitionRecords  # type: ignore[import-untyped]
from aiokafka.structs import TopicPartition  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from infra.kafka.headers import UNREADABLE_HEADERS
from streams.faust.record_batches import Records
from tests.contracts.unreadable_headers import UnreadableName, record_batch

BAD, GOOD = (UnreadableName("bad"), b"1"), ("good", b"2")
HEADERS = st.lists(st.sampled_from([BAD, GOOD, ("none", None)]), max_size=3)
RECORD = st.tuples(st.none() | st.binary(max_size=200), st.none() | st.binary(max_size=200), HEADERS)


def batch(records: list[tuple[bytes | None, bytes | None, list[Any]]], compression: int = 0) -> bytes:
    return bytes(record_batch(records, compression).build())


def read(data: bytes, start: int = 0) -> list[Any]:
    """Read as aiokafka's consumer does."""
    return list(PartitionRecords(TopicPartition("t", 0), Records(data), [], start, None, None, True, 1))


@given(st.lists(RECORD, min_size=1, max_size=8), st.sampled_from([0, 1]))
def test_every_record_is_read_and_only_unreadable_headers_are_dropped(records: list[Any], compression: int) -> None:
    found = read(batch(records, compression))

    assert [(one.offset, one.timestamp, one.key, one.value) for one in found] == [
        (number, 1000 + number, key, value) for number, (key, value, _) in enumerate(records)
    ]
    for one, (_, _, headers) in zip(found, records, strict=True):
        assert one.headers == (UNREADABLE_HEADERS if BAD in headers else tuple(headers))


def test_reading_starts_behind_and_goes_on_in_the_next_batch() -> None:
    data = batch([(b"k", b"0", [GOOD]), (b"k", b"1", [BAD]), (b"k", b"2", [GOOD])])

    assert [one.value for one in read(data, 1)] == [b"1", b"2"]
    assert [one.value for one in read(data + data)] == [b"0", b"1", b"2"]  # the second has the same offsets


def test_a_batch_that_is_cut_off_or_corrupt_is_not_read() -> None:
    data = batch([(b"k", b"v", [BAD])])

    assert read(data[:-1]) == []
    with pytest.raises(Exception, match="Invalid CRC"):
        read(data[:-1] + b"\x7f")
