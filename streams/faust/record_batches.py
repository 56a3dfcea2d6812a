"""Reads fetched record batches whose header names are not all UTF-8; aiokafka raises at such a record, for ever.

Guarantees: of such a record key, value, time and offset are read; in place of its headers it has
:data:`infra.kafka.headers.UNREADABLE_HEADERS`, as everywhere else. Other records are read as by aiokafka, at the
same speed: only a batch with such a record is read in Python.

Source: Kafka protocol, record batch of version 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from aiokafka.consumer import fetcher  # type: ignore[import-untyped]
from aiokafka.record.default_records import (  # type: ignore[import-untyped]
    _DefaultRecordBatchPy,
    _DefaultRecordPy,
)
from aiokafka.record.memory_records import _MemoryRecordsPy  # type: ignore[import-untyped]
from aiokafka.record.util import decode_varint  # type: ignore[import-untyped]

from infra.kafka.headers import UNREADABLE_HEADERS

_MAGIC = 2  # version of batches whose records have headers


def install() -> None:
    """Make the consumers of this process read their records with :class:`Records`: aiokafka has no setting for it."""
    fetcher.MemoryRecords = Records


class Records(_MemoryRecordsPy):
    """The batches of one response to a fetch, as aiokafka's ``MemoryRecords``."""

    def next_batch(self) -> Any:
        """Return the next batch, or None at the end."""
        piece = self._next_slice
        batch = super().next_batch()
        return batch if batch is None or piece[self.MAGIC_OFFSET] < _MAGIC else _Batch(batch, piece)


class _Batch:
    """A batch as aiokafka reads it, and from the first unreadable record on as :class:`_TolerantBatch` does."""

    def __init__(self, batch: Any, piece: memoryview) -> None:
        self._batch = batch
        self._piece = piece

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        count = 0
        try:
            for record in self._batch:
                count += 1
                yield record
        except ValueError:  # a UnicodeDecodeError; a batch that is corrupt fails again below
            yield from islice(_TolerantBatch(self._piece), count, None)


class _TolerantBatch(_DefaultRecordBatchPy):
    """Reads a record whose headers cannot be read without them."""

    _pos: int

    def _read_msg(self) -> Any:
        try:
            return super()._read_msg()
        except UnicodeDecodeError:  # the position is still at the start of the record
            return self._without_headers()

    def _without_headers(self) -> Any:
        length, at = decode_varint(self._buffer, self._pos)
        self._pos = at + length
        _, at = decode_varint(self._buffer, at)  # attributes
        after_first, at = decode_varint(self._buffer, at)
        time = self.max_timestamp if self.timestamp_type == self.LOG_APPEND_TIME else self.first_timestamp + after_first
        number, at = decode_varint(self._buffer, at)
        key, at = self._bytes(at)
        value, _ = self._bytes(at)
        headers = list(UNREADABLE_HEADERS)
        return _DefaultRecordPy(self.base_offset + number, time, self.timestamp_type, key, value, headers)

    def _bytes(self, at: int) -> tuple[bytes | None, int]:
        length, at = decode_varint(self._buffer, at)
        return (None, at) if length < 0 else (bytes(self._buffer[at : at + length]), at + length)
