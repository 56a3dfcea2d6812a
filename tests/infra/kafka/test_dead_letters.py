"""Dead letters: every record has one, whatever its size."""

from __future__ import annotations

import asyncio
import os

import pytest
from confluent_kafka import TopicPartition

from infra.kafka import client
from infra.kafka.dead_letters import LARGEST, dead_letter
from infra.kafka.dead_letters import TOPIC as DEAD
from infra.kafka.producer import Deliverer, Output
from infra.outcomes import Dead, Reason
from tests.conftest import Stack

pytestmark = pytest.mark.integration


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
