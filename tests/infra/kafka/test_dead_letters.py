"""Dead letters: every record has one, whatever its size, and too many of them stop a stage."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import pytest
from confluent_kafka import TopicPartition

from infra.errors import TooManyDead
from infra.kafka import client
from infra.kafka.dead_letters import LARGEST, DeadShare, dead_letter
from infra.kafka.dead_letters import TOPIC as DEAD
from infra.kafka.producer import Deliverer, Output
from infra.outcomes import Dead, Reason
from tests.conftest import Stack
from tests.infra.kafka.conftest import Place, Recorder

pytestmark = pytest.mark.integration


def test_too_many_dead_are_detected_before_the_window_is_full() -> None:
    """Otherwise a stage that restarts repeatedly would dead-letter a window of records each time."""
    share = DeadShare(100, 0.5)
    for _ in range(5):
        share.add(10, 10)
    with pytest.raises(TooManyDead):
        share.add(1, 1)


async def test_too_many_dead_stop_the_process_before_their_dead_letters_are_written(
    place: Callable[..., Place],
) -> None:
    here = place(LEADSTREAM_DEAD_WINDOW="20", LEADSTREAM_MAX_DEAD_SHARE="0.4")
    processor = Recorder(here.out, dead=lambda m: bool(m.value() == b"bad"))
    good, mixed = [b"good"] * 20, [b"bad"] * 8 + [b"good"] * 12
    await here.send(*good, *mixed, *[b"bad"] * 20)
    with pytest.raises(TooManyDead, match=r"0\.4"):
        await here.run(processor, size=20, linger_ms=5000)
    produced = (await here.produced()).get(0, [])
    assert produced.count(b"bad") <= 8  # the share is allowed; the batch that exceeds it has no dead letters
    assert (await here.committed()).get(0, 0) in (0, 20, 40)


@pytest.mark.parametrize(
    ("record", "intact"),
    [
        (os.urandom(4_194_304 - 200), True),
        (b"compressed on the way" * 500_000, True),  # a topic's limit counts compressed bytes
        (b"a" * LARGEST, False),
    ],
    ids=["random", "ten megabytes", "more than a letter holds"],
)
async def test_every_record_of_a_topic_has_a_dead_letter(
    stack: Stack, unique: str, record: bytes, *, intact: bool
) -> None:
    deliverer = Deliverer(stack.settings, "test")
    consumer = client.reader(stack.settings, unique)
    try:
        (delivery,) = await deliverer.deliver_each([Output("leads.received", unique.encode(), record)])
        assert delivery.error == ""
        consumer.assign([TopicPartition("leads.received", delivery.partition, delivery.offset)])
        message = await asyncio.to_thread(consumer.poll, 30)
        assert message.value() == record
        (dead,) = await deliverer.deliver_each([dead_letter(message, "test", Dead(Reason.TOO_LARGE))])
        assert dead.error == ""
        consumer.assign([TopicPartition(DEAD, dead.partition, dead.offset)])
        letter = await asyncio.to_thread(consumer.poll, 30)
        assert (letter.key(), letter.value()) == ((unique.encode(), record) if intact else (None, None))
        headers = dict(letter.headers())
        assert int(headers["leadstream.offset"]) == delivery.offset
        assert (b"too many" in headers["leadstream.detail"]) is not intact
    finally:
        consumer.close()
        await deliverer.close()
