"""The offset ledger: decides which record of a partition is accepted next and which offset may be committed.

Guarantees:

- :meth:`OffsetLedger.committable` is never after a record that was accepted and is not acked. (Faust's own rule can
  commit records in flight: faust-streaming issue #606, pull request #707.)
- Records are accepted in offset order, and none is skipped: a record is accepted only if it follows the last accepted
  one, or if the offsets between them are known to hold no record (:meth:`OffsetLedger.skip`: transaction markers,
  aborted transactions, compaction, retention). Otherwise the partition must be read again from there. A gap that is
  still there after three reads is skipped.
- The offset to commit also passes offsets that hold no record, so lag falls to 0 behind a transaction marker.
- A record that was fetched before the last seek or before the last assignment is never accepted out of order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

from infra.runtime import log

_GAP_READS = 3  # number of times that a gap is read before it is skipped

Partition = Any  # Faust's TP: a hashable pair of topic and partition


class Admission(Enum):
    """What to do with a fetched record."""

    ACCEPTED = "accepted"  # process it: it is the next record, and open until it is acked
    IGNORED = "ignored"  # drop it: it was accepted before, or was fetched before the last seek or assignment
    READ_AGAIN = "read_again"  # drop it and seek to ``expected``: records before it are missing


class OffsetLedger:
    """The offsets of the assigned partitions. Not thread-safe: only the event loop may use it."""

    def __init__(self) -> None:
        self._open: dict[Partition, set[int]] = {}
        self._next: dict[Partition, int] = {}
        self._empty: dict[Partition, dict[int, int]] = {}  # start -> end of ranges of offsets without a record
        self._gap_reads: dict[tuple[Partition, int], int] = {}
        self._round = 0
        self._assignment = 0
        self._first_valid_round: dict[Partition, int] = {}

    @property
    def round(self) -> int:
        """The fetch round: a number that increases with each seek and each assignment."""
        return self._round

    @property
    def assignment(self) -> int:
        """The number of the current assignment. Pass it to :meth:`start` with offsets that were requested in it."""
        return self._assignment

    def assign(self) -> None:
        """Begin a new assignment: clear all partitions. No record is accepted before :meth:`start`."""
        self._round += 1
        self._assignment = self._round
        for state in (self._open, self._next, self._empty, self._gap_reads, self._first_valid_round):
            state.clear()

    def start(self, offsets: Mapping[Partition, int], assignment: int) -> None:
        """Set the first offset of partitions; ignored if they were requested in an earlier ``assignment``."""
        if assignment == self._assignment:
            for partition, offset in offsets.items():
                self._next.setdefault(partition, offset)

    def skip(self, partition: Partition, empty: Iterable[tuple[int, int]]) -> None:
        """Note that the offsets from ``start`` to before ``end``, of each pair in ``empty``, hold no record."""
        next_offset = self._next.get(partition, 0)
        known = {start: end for start, end in self._empty.get(partition, {}).items() if start >= next_offset}
        self._empty[partition] = known | dict(empty)
        if partition in self._next:
            self._set_next(partition, next_offset)

    def _set_next(self, partition: Partition, offset: int) -> None:
        empty = self._empty.get(partition)
        while empty and (end := empty.pop(offset, None)) is not None:
            offset = end
        self._next[partition] = offset

    def expected(self, partition: Partition) -> int | None:
        """Return the offset of the next record to accept, or None before :meth:`start`."""
        return self._next.get(partition)

    def admit(self, partition: Partition, offset: int, fetch_round: int) -> Admission:
        """Decide what to do with the record at ``offset`` that was fetched in ``fetch_round``.

        Must be called immediately before the record is processed: a record that is lost after this call is not
        detected.
        """
        expected = self._next.get(partition)
        if expected is None or offset < expected:
            return Admission.IGNORED
        if offset > expected:
            if fetch_round < self._first_valid_round.get(partition, 0):
                return Admission.IGNORED
            reads = self._gap_reads.get((partition, expected), 0)
            if reads < _GAP_READS:
                self._gap_reads[partition, expected] = reads + 1
                self._round += 1
                self._first_valid_round[partition] = self._round
                return Admission.READ_AGAIN
            fields = {"partition": str(partition), "from": expected, "to": offset}
            log("faust").warning("offsets without records are skipped", extra={"fields": fields})
        self._open.setdefault(partition, set()).add(offset)
        self._set_next(partition, offset + 1)
        return Admission.ACCEPTED

    def ack(self, partition: Partition, offset: int) -> None:
        """Mark an open record as acked; an unknown record is ignored."""
        self._open.get(partition, set()).discard(offset)

    def committable(self, partition: Partition) -> int | None:
        """Return the offset to commit: of the first open record, else of the next record; None before :meth:`start`."""
        return min(still_open) if (still_open := self._open.get(partition)) else self._next.get(partition)

    def partitions(self) -> list[Partition]:
        """Return the partitions for which :meth:`start` was called."""
        return list(self._next)
