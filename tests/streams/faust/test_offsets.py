"""The offset ledger without a broker: which records are accepted and which offset may be committed."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.faust.offsets import Admission, OffsetLedger

P0 = ("t", 0)
P1 = ("t", 1)


class Reader:
    """A ledger, and records with their fetch rounds."""

    def __init__(self, start: int = 10) -> None:
        self.ledger = OffsetLedger()
        self.assign(start)

    def assign(self, start: int) -> None:
        self.ledger.assign()
        self.ledger.start({P0: start}, self.ledger.assignment)

    def fetch(self, *offsets: int) -> list[tuple[int, int]]:
        return [(offset, self.ledger.round) for offset in offsets]

    def offer(self, fetched: list[tuple[int, int]]) -> list[Admission]:
        return [self.ledger.admit(P0, offset, fetch_round) for offset, fetch_round in fetched]

    def accepted(self, *offsets: int) -> list[int]:
        """Fetch ``offsets`` in the current round and return those that are accepted."""
        answers = self.offer(self.fetch(*offsets))
        return [offset for offset, answer in zip(offsets, answers, strict=True) if answer is Admission.ACCEPTED]

    def ack(self, *offsets: int) -> int | None:
        for offset in offsets:
            self.ledger.ack(P0, offset)
        return self.ledger.committable(P0)


@pytest.fixture
def reader() -> Reader:
    return Reader()


def test_a_commit_never_passes_a_record_in_flight(reader: Reader) -> None:
    assert reader.accepted(10, 11, 12) == [10, 11, 12]
    assert reader.ack(11) == 10
    assert reader.ack(12) == 10
    assert reader.ack(10) == 13


def test_missing_records_are_read_again_before_a_later_record_is_accepted(reader: Reader) -> None:
    assert reader.offer(reader.fetch(15, 16)) == [Admission.READ_AGAIN, Admission.IGNORED]
    assert reader.ledger.expected(P0) == 10
    assert reader.accepted(*range(10, 17)) == list(range(10, 17))


def test_a_gap_is_skipped_after_three_reads(reader: Reader) -> None:
    assert [reader.offer(reader.fetch(15)) for _ in range(3)] == [[Admission.READ_AGAIN]] * 3
    assert reader.accepted(15) == [15]
    assert reader.ack(15) == 16


def test_a_record_is_accepted_once(reader: Reader) -> None:
    reader.accepted(10, 11, 12)
    assert reader.accepted(10, 11, 12, 13) == [13]
    assert reader.ack(10) == 11


def test_records_after_a_gap_cause_one_seek(reader: Reader) -> None:
    fetched = reader.fetch(10, 11, 12)
    assert reader.offer(fetched[1:]) == [Admission.READ_AGAIN, Admission.IGNORED]
    assert reader.accepted(10, 11, 12) == [10, 11, 12]


def test_a_record_fetched_before_an_assignment_is_not_accepted_out_of_order(reader: Reader) -> None:
    stale = reader.fetch(10, 11, 12)
    reader.assign(10)
    assert Admission.ACCEPTED not in reader.offer(stale[1:])
    assert reader.accepted(10, 11, 12) == [10, 11, 12]


def test_no_record_is_accepted_before_the_first_offset_is_set(reader: Reader) -> None:
    reader.ledger.assign()
    assert reader.accepted(50, 51) == []
    assert reader.ledger.committable(P0) is None
    assert reader.ledger.partitions() == []


def test_offsets_requested_in_an_earlier_assignment_are_ignored(reader: Reader) -> None:
    earlier = reader.ledger.assignment
    reader.ledger.assign()
    reader.ledger.start({P0: 900}, earlier)
    assert reader.ledger.expected(P0) is None
    reader.ledger.start({P0: 10}, reader.ledger.assignment)
    assert reader.accepted(10, 11) == [10, 11]


def test_an_ack_of_an_earlier_assignment_does_not_pass_an_open_record(reader: Reader) -> None:
    reader.accepted(10)
    reader.assign(10)
    reader.accepted(10, 11)
    assert reader.ack(10) == 11


def test_partitions_are_independent(reader: Reader) -> None:
    reader.ledger.start({P1: 3}, reader.ledger.assignment)
    reader.accepted(10)
    assert reader.ledger.admit(P1, 3, reader.ledger.round) is Admission.ACCEPTED
    assert reader.ack(10) == 11
    assert reader.ledger.committable(P1) == 3


def test_offsets_known_to_hold_no_record_are_passed_without_reading_again(reader: Reader) -> None:
    reader.ledger.skip(P0, [(10, 500), (501, 502)])
    assert reader.ledger.committable(P0) == 500
    assert reader.accepted(500, 502) == [500, 502]
    assert reader.ack(502) == 500
    assert reader.ack(500) == 503


def test_a_marker_at_the_end_is_committed_when_all_records_before_it_are_acked(reader: Reader) -> None:
    assert reader.accepted(10) == [10]
    reader.ledger.skip(P0, [(11, 12)])
    assert reader.ledger.committable(P0) == 10
    assert reader.ack(10) == 12
    assert reader.accepted(12) == [12]


def test_a_marker_is_not_passed_before_the_records_that_were_fetched_before_it(reader: Reader) -> None:
    fetched = reader.fetch(10, 11)
    reader.ledger.skip(P0, [(12, 13)])
    assert reader.ledger.committable(P0) == 10
    reader.offer(fetched)
    assert reader.ack(10, 11) == 13


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("drop"), st.integers(0, 3)),  # Faust drops so many fetched records
        st.tuples(st.just("read"), st.integers(1, 5)),
        st.tuples(st.just("ack"), st.integers(0, 9)),
        st.tuples(st.just("assign"), st.just(0)),
    ),
    max_size=60,
)


@given(_STEPS)
def test_records_are_accepted_in_order_and_never_committed_unacked_for_any_drops_and_assignments(
    steps: list[tuple[str, int]],
) -> None:
    """The log has the records 0, 1, 2, …; reading continues after the last seek or fetch; acks come in any order."""
    ledger, position, committed, gaps = OffsetLedger(), 0, 0, 0
    ledger.assign()
    ledger.start({P0: 0}, ledger.assignment)
    accepted: list[int] = []
    acked: set[int] = set()
    for step, number in steps:
        if step == "drop":
            position += number if gaps < 3 else 0  # the ledger skips a gap at the fourth time
        elif step == "read":
            for offset in range(position, position + number):
                answer = ledger.admit(P0, offset, ledger.round)
                position = offset + 1
                if answer is Admission.ACCEPTED:
                    assert not accepted or offset == accepted[-1] + 1
                    accepted.append(offset)
                    gaps = 0
                elif answer is Admission.READ_AGAIN:
                    position = ledger.expected(P0) or 0
                    gaps += 1
                    break
        elif step == "ack" and accepted:
            offset = accepted[number % len(accepted)]
            acked.add(offset)
            ledger.ack(P0, offset)
        elif step == "assign":
            ledger.assign()
            ledger.start({P0: committed}, ledger.assignment)
            accepted, position = [], committed
        offset_to_commit = ledger.committable(P0)
        assert offset_to_commit is not None
        assert set(range(committed, offset_to_commit)) <= acked
        committed = offset_to_commit


@given(
    holes=st.sets(st.integers(0, 60), max_size=50),
    fetches=st.lists(st.integers(1, 12), max_size=12),
    order=st.randoms(use_true_random=False),
)
def test_with_any_offsets_without_records_all_records_are_accepted_at_once_and_the_end_is_committed(
    holes: set[int], fetches: list[int], order: random.Random
) -> None:
    """The consumer notes the offsets without records of a fetch before its records, as streams.faust.consumer does."""
    ledger, position = OffsetLedger(), 0
    ledger.assign()
    ledger.start({P0: 0}, ledger.assignment)
    accepted: list[int] = []
    for size in fetches:
        records = [offset for offset in range(position, position + size) if offset not in holes]
        empty, following = [], position
        for offset in (*records, position + size):
            if offset > following:
                empty.append((following, offset))
            following = offset + 1
        ledger.skip(P0, empty)
        position += size
        for offset in records:
            assert ledger.admit(P0, offset, ledger.round) is Admission.ACCEPTED
            accepted.append(offset)
            if order.random() < 0.5:
                ledger.ack(P0, accepted.pop(order.randrange(len(accepted))))
            committed = ledger.committable(P0)
            assert committed == (min(accepted) if accepted else ledger.expected(P0))
    for offset in accepted:
        ledger.ack(P0, offset)
    assert ledger.committable(P0) == position
