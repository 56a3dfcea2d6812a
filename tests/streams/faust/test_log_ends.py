"""The Faust adapter where offsets hold no record: transaction markers, aborted and open transactions, retention."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.streams.faust.workers import Broker, Workers, wait_until

WORKER = str(Path(__file__).with_name("agent_worker.py"))


class OnePartition:
    """A topic of one partition, and a worker that copies its records."""

    def __init__(self, bootstrap: str, folder: Path) -> None:
        self.group = f"test-{uuid.uuid4().hex[:8]}"
        self.topic, self.out = f"{self.group}.in", f"{self.group}.out"
        self.broker = Broker(bootstrap)
        self.broker.make(self.topic, self.out, partitions=1)
        environment = {"LEADSTREAM_HOME": str(folder), "LEADSTREAM_KAFKA_BOOTSTRAP": bootstrap}
        self.workers = Workers([WORKER, self.group, self.topic, self.out], environment, folder)

    def copied(self, count: int) -> list[bytes]:
        return [m.value() or b"" for m in self.broker.follow(self.out, lambda read: len(read) >= count, 60)]

    def committed_is(self, offset: int) -> bool:
        return wait_until(lambda: self.broker.committed(self.group, self.topic)[0] == offset, 30)

    def end(self) -> int:
        return self.broker.ends(self.topic)[0]


@pytest.fixture
def one(stack: Any, tmp_path: Path) -> Iterator[OnePartition]:
    one = OnePartition(stack.settings.kafka_bootstrap, tmp_path)
    with one.workers:
        yield one


@pytest.mark.integration
def test_a_transaction_marker_at_the_end_is_committed_and_the_worker_stays(one: OnePartition) -> None:
    worker = one.workers.start()
    one.broker.in_transaction(one.topic, [b"1", b"2"], end="commit")
    assert sorted(one.copied(2)) == [b"1", b"2"]
    assert one.end() == 3
    assert one.committed_is(3), one.workers.logs()
    one.broker.in_transaction(one.topic, [b"no"], end="abort")
    assert one.committed_is(5), one.workers.logs()
    one.broker.produce(one.topic, [(b"key", b"3")])
    assert sorted(one.copied(3)) == [b"1", b"2", b"3"], "a record of an aborted transaction was consumed"
    assert one.committed_is(6), one.workers.logs()
    assert worker.poll() is None


@pytest.mark.integration
def test_many_small_transactions_are_consumed_without_reading_again(one: OnePartition) -> None:
    for number in range(40):
        one.broker.in_transaction(one.topic, [b"%d" % number], end="commit" if number % 4 else "abort")
    one.workers.start()
    assert len(one.copied(30)) == 30
    assert one.committed_is(one.end()), one.workers.logs()
    assert "offsets without records" not in one.workers.logs()


@pytest.mark.integration
def test_an_open_transaction_holds_its_records_back_until_it_ends(one: OnePartition) -> None:
    one.broker.produce(one.topic, [(b"key", b"1")])
    one.workers.start()
    transaction = one.broker.in_transaction(one.topic, [b"2"], end="open")
    one.broker.produce(one.topic, [(b"key", b"3")])
    assert one.copied(1) == [b"1"]
    assert one.committed_is(1), one.workers.logs()
    transaction.commit_transaction(30)
    assert sorted(one.copied(3)) == [b"1", b"2", b"3"]
    assert one.committed_is(one.end()), one.workers.logs()


@pytest.mark.integration
@pytest.mark.parametrize("kept", [10, 0])
def test_a_group_that_retention_has_passed_continues_at_the_first_record_left(one: OnePartition, kept: int) -> None:
    one.broker.produce(one.topic, [(b"key", b"%d" % n) for n in range(20)])
    one.workers.start()
    one.copied(20)
    assert one.committed_is(20), one.workers.logs()
    assert one.workers.terminate() == [0], one.workers.logs()
    one.broker.produce(one.topic, [(b"key", b"%d" % n) for n in range(20, 100)])
    one.broker.delete_before(one.topic, 100 - kept)
    one.workers.start()
    assert {int(v) for v in one.copied(20 + kept)} == set(range(20)) | set(range(100 - kept, 100))
    assert one.committed_is(100), one.workers.logs()
    assert "the committed offset is not in the log" in one.workers.logs()


@pytest.mark.integration
def test_retention_that_passes_a_running_group_does_not_stop_it(one: OnePartition) -> None:
    one.broker.produce(one.topic, [(b"key", b"0")])
    worker = one.workers.start()
    one.copied(1)
    transaction = one.broker.in_transaction(one.topic, [b"held"], end="open")
    one.broker.produce(one.topic, [(b"key", b"%d" % n) for n in range(1, 30)])
    assert one.committed_is(1), one.workers.logs()
    transaction.commit_transaction(30)
    one.broker.delete_before(one.topic, one.end())
    one.broker.produce(one.topic, [(b"key", b"last")])
    assert wait_until(lambda: b"last" in one.copied(1)), one.workers.logs()
    assert one.committed_is(one.end()), one.workers.logs()
    assert worker.poll() is None


@pytest.mark.integration
def test_a_group_whose_committed_offset_is_after_the_end_starts_at_the_beginning(one: OnePartition) -> None:
    """As after a topic was created anew, or a broker has lost the end of the log."""
    one.broker.produce(one.topic, [(b"key", b"%d" % n) for n in range(20)])
    one.broker.commit(one.group, one.topic, 500)
    one.workers.start()
    assert {int(v) for v in one.copied(20)} == set(range(20))
    assert one.committed_is(20), one.workers.logs()
