"""Every process killed, some paused, disks full, a clock that jumps: the books are right afterwards."""

from __future__ import annotations

import pytest

from tests.chaos.run import ENDED, VICTIMS, Result

pytestmark = [pytest.mark.chaos, pytest.mark.integration, pytest.mark.timeout(5400)]


def test_every_process_was_killed(chaos: Result) -> None:
    assert sum(chaos.kills.values()) == chaos.size.kills
    assert set(chaos.kills) == set(VICTIMS)
    assert len(chaos.ledger.events) + chaos.ledger.repeated + chaos.ledger.broken == chaos.size.events


@pytest.mark.parametrize("fault", ["clock step", "full disk: kafka", "full disk: postgres", "paused: intake"])
def test_the_other_faults_were_there(chaos: Result, fault: str) -> None:
    if fault in chaos.skipped:
        pytest.skip(chaos.skipped[fault])
    assert chaos.faults[fault]
    assert not [when for when in chaos.faults[fault] if ENDED in when]


@pytest.mark.parametrize(
    "book",
    [
        "all work is done",
        "nothing acknowledged is lost",
        "one outcome a record",
        "accepted once",
        "versions without gaps",
        "ClickHouse equals Postgres",
        "CRM equals canonical",
        "messages sent",
        "enrichment ended",
    ],
)
def test_the_book_is_right(chaos: Result, book: str) -> None:
    assert chaos.books[book] == []
