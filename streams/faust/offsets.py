"""Which record of a partition comes next and which offset may be committed: the bookkeeping beside Faust's consumer.

Guarantees:

- :meth:`OffsetLedger.committable` never passes a record that was accepted and is not acked. (Faust's own rule can pass
  records in flight: faust-streaming issue #606, pull request #707.)
- No record is skipped, and none overtakes an earlier one: a record is accepted when it is the one after the last one
  accepted, else the partition is to be read again from there. Only a gap that stays is skipped (compaction, retention,
  transaction markers).
- What was fetched before a partition was read again, or assigned again, is recognised and never accepted.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from infra.runtime import log

_GAP_READS = 3  # a gap that is still there after it was read so often is real

Partition = Any  # a hashable pair of topic and partition: Faust's TP


class Admission(Enum):
    """What to do with a record that was fetched."""

    ACCEPTED = "accepted"  # it is the next one, and open until it is acked
    IGNORED = "ignored"  # accepted before, or fetched before the partition was read or assigned again
    READ_AGAIN = "read_again"  # records before it are missing: seek to ``expected`` and drop this one


class OffsetLedger:
    """The offsets of the partitions of one assignment. Not thread-safe: used by the event loop alone."""

    def __init__(self) -> None:
        self._open: dict[Partition, set[int]] = {}
        self._next: dict[Partition, int] = {}
        self._gap_reads: dict[tuple[Partition, int], int] = {}
        self._round = 0
        self._assignment = 0
        self._fresh_from: dict[Partition, int] = {}

    @property
    def round(self) -> int:
        """The round of fetching: it changes with each seek, so a record knows which seek it was fetched after."""
        return self._round

    @property
    def assignment(self) -> int:
        """The number of the present assignment, to be remembered with a question that takes time."""
        return self._assignment

    def assign(self) -> None:
        """Begin a new assignment: nothing is known of any partition until :meth:`start`."""
        self._round += 1
        self._assignment = self._round
        for known in (self._open, self._next, self._gap_reads, self._fresh_from):
            known.clear()

    def start(self, offsets: Mapping[Partition, int], assignment: int) -> None:
        """Learn where partitions begin; ignored when it is the answer about another ``assignment`` than the present."""
        if assignment == self._assignment:
            for partition, offset in offsets.items():
                self._next.setdefault(partition, offset)

    def expected(self, partition: Partition) -> int | None:
        """Return the offset that is accepted next; None where it is not known yet."""
        return self._next.get(partition)

    def admit(self, partition: Partition, offset: int, fetched_in: int) -> Admission:
        """Decide about the record at ``offset`` that was fetched in round ``fetched_in``.

        Ask where nothing stands between the answer and the work: whatever was lost on the way there is then noticed.
        """
        expected = self._next.get(partition)
        if expected is None or offset < expected:
            return Admission.IGNORED
        if offset > expected:
            if fetched_in < self._fresh_from.get(partition, 0):
                return Admission.IGNORED
            reads = self._gap_reads.get((partition, expected), 0)
            if reads < _GAP_READS:
                self._gap_reads[partition, expected] = reads + 1
                self._round += 1
                self._fresh_from[partition] = self._round
                return Admission.READ_AGAIN
            fields = {"partition": str(partition), "from": expected, "to": offset}
            log("faust").warning("records are missing from the log and are skipped", extra={"fields": fields})
        self._open.setdefault(partition, set()).add(offset)
        self._next[partition] = offset + 1
        return Admission.ACCEPTED

    def ack(self, partition: Partition, offset: int) -> None:
        """Note that a record's effects are durable."""
        self._open.get(partition, set()).discard(offset)

    def committable(self, partition: Partition) -> int | None:
        """Return the offset to commit: the lowest open one, else the next one; None where neither is known."""
        return min(still_open) if (still_open := self._open.get(partition)) else self._next.get(partition)

    def partitions(self) -> list[Partition]:
        """Return the partitions whose beginning is known."""
        return list(self._next)
