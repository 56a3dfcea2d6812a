"""The Faust adapter on a real broker in real processes: no record is lost when workers are killed."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Message

from tests.streams.faust.workers import Broker, Workers, wait_until

WORKER = str(Path(__file__).with_name("agent_worker.py"))
PARTITIONS, KEYS = 6, 100


class Scene:
    def __init__(self, bootstrap: str, folder: Path) -> None:
        self.name = f"test-{uuid.uuid4().hex[:8]}"
        self.source, self.out = f"{self.name}.in", f"{self.name}.out"
        self.broker = Broker(bootstrap)
        self.broker.make(self.source, self.out, partitions=PARTITIONS)
        environment = {"LEADSTREAM_HOME": str(folder), "LEADSTREAM_KAFKA_BOOTSTRAP": bootstrap}
        self.workers = Workers([WORKER, self.name, self.source, self.out], environment, folder)

    def produce(self, numbers: range) -> None:
        self.broker.produce(self.source, [(b"key-%d" % (n % KEYS), b"%d" % n) for n in numbers])

    def all_committed(self) -> bool:
        return self.broker.committed(self.name, self.source) == self.broker.ends(self.source)


@pytest.fixture
def scene(stack: Any, tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(stack.settings.kafka_bootstrap, tmp_path)
    with scene.workers:
        yield scene


def numbers(messages: list[Message]) -> list[int]:
    return [int(message.value() or b"-1") for message in messages]


def assert_each_key_in_order(messages: list[Message]) -> None:
    """Check that the first copies of the records of each key are in order."""
    seen: set[int] = set()
    last: dict[bytes | None, int] = {}
    for message in messages:
        number = int(message.value() or b"-1")
        if number not in seen:
            assert number > last.get(message.key(), -1), "records of one key are out of order"
            last[message.key()] = number
        seen.add(number)


@pytest.mark.integration
@pytest.mark.parametrize("attempt", range(2))
def test_three_workers_of_a_new_group_that_start_at_once_consume_every_record(scene: Scene, attempt: int) -> None:
    del attempt
    count = 3000
    scene.produce(range(count))
    for _ in range(3):
        scene.workers.start()
    messages = scene.broker.follow(scene.out, lambda read: set(numbers(read)) == set(range(count)))
    assert set(numbers(messages)) == set(range(count)), scene.workers.logs()
    assert_each_key_in_order(messages)
    assert wait_until(scene.all_committed), scene.workers.logs()
    assert scene.workers.terminate() == [0, 0, 0], scene.workers.logs()


@pytest.mark.integration
def test_a_stop_finishes_the_records_in_flight_and_the_next_worker_continues_after_them(scene: Scene) -> None:
    scene.produce(range(2000))
    scene.workers.start()
    scene.broker.follow(scene.out, lambda read: len(read) > 300)
    assert scene.workers.terminate() == [0], scene.workers.logs()
    done = sum(scene.broker.committed(scene.name, scene.source).values())
    assert done == sum(scene.broker.ends(scene.out).values()), "a delivered record was not committed"
    scene.workers.start()
    messages = scene.broker.follow(scene.out, lambda read: len(read) >= 2000)
    assert sorted(numbers(messages)) == list(range(2000)), "a clean stop must neither lose nor repeat a record"


@pytest.mark.integration
@pytest.mark.chaos
def test_no_record_is_lost_when_workers_are_killed(scene: Scene, rng: random.Random) -> None:
    count = 12_000
    scene.produce(range(count))
    for _ in range(3):
        scene.workers.start()
    for kill in range(1, 7):
        reached = kill * count // 8
        scene.broker.follow(scene.out, lambda read, enough=reached: len(read) >= enough, 90)  # type: ignore[misc]
        scene.workers.kill_and_restart(rng.randrange(3))
    messages = scene.broker.follow(scene.out, lambda read: len(set(numbers(read))) == count, 150)
    assert set(numbers(messages)) == set(range(count)), scene.workers.logs()
    assert_each_key_in_order(messages)
    assert wait_until(scene.all_committed), scene.workers.logs()
