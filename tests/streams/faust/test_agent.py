"""The Faust foundation on a real broker, in real processes: nothing is lost, whoever is killed."""

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
    """Of each key, the first copy of every record comes in order; a repetition after a crash comes in order, too."""
    seen: set[int] = set()
    last: dict[bytes | None, int] = {}
    for message in messages:
        number = int(message.value() or b"-1")
        if number not in seen:
            assert number > last.get(message.key(), -1), "a key's records have changed places"
            last[message.key()] = number
        seen.add(number)


@pytest.mark.integration
@pytest.mark.parametrize("attempt", range(2))
def test_a_fresh_group_of_three_workers_at_once_takes_every_record_that_is_there(scene: Scene, attempt: int) -> None:
    del attempt
    count = 3000
    scene.produce(range(count))
    for _ in range(3):
        scene.workers.start()
    messages = scene.broker.follow(scene.out, lambda read: set(numbers(read)) == set(range(count)))
    assert set(numbers(messages)) == set(range(count)), scene.workers.said()
    assert_each_key_in_order(messages)
    assert wait_until(scene.all_committed), scene.workers.said()
    assert scene.workers.terminate() == [0, 0, 0], scene.workers.said()


@pytest.mark.integration
def test_a_stop_finishes_what_is_in_hand_and_the_next_worker_goes_on_there(scene: Scene) -> None:
    scene.produce(range(2000))
    scene.workers.start()
    scene.broker.follow(scene.out, lambda read: len(read) > 300)
    assert scene.workers.terminate() == [0], scene.workers.said()
    done = sum(scene.broker.committed(scene.name, scene.source).values())
    assert done == sum(scene.broker.ends(scene.out).values()), "a delivered record was not committed"
    scene.workers.start()
    messages = scene.broker.follow(scene.out, lambda read: len(read) >= 2000)
    assert sorted(numbers(messages)) == list(range(2000)), "a clean stop neither loses nor repeats"


@pytest.mark.integration
@pytest.mark.chaos
def test_killed_again_and_again_nothing_is_lost(scene: Scene, rng: random.Random) -> None:
    count = 12_000
    scene.produce(range(count))
    for _ in range(3):
        scene.workers.start()
    for kill in range(1, 7):
        reached = kill * count // 8
        scene.broker.follow(scene.out, lambda read, enough=reached: len(read) >= enough, 90)  # type: ignore[misc]
        scene.workers.kill_and_restart(rng.randrange(3))
    messages = scene.broker.follow(scene.out, lambda read: len(set(numbers(read))) == count, 150)
    assert set(numbers(messages)) == set(range(count)), scene.workers.said()
    assert_each_key_in_order(messages)
    assert wait_until(scene.all_committed), scene.workers.said()
