"""The client and the broker accept every record within its size limit."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from confluent_kafka import KafkaException, Message, Producer
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.kafka.dead_letters import dead_letter
from infra.kafka.producer import Deliverer, Output
from infra.kafka.sizes import output_bytes, record_bytes, topic_limits
from infra.outcomes import Dead, Reason
from tests.conftest import Stack

LIMIT = 20_000
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=30)


@pytest.fixture(scope="module")
def client() -> Iterator[Producer]:
    producer = Producer({"bootstrap.servers": "127.0.0.1:1", "message.max.bytes": LIMIT, "log_level": 0})
    yield producer
    producer.purge()
    producer.flush(0)


@given(
    key=st.none() | st.binary(max_size=100),
    headers=st.lists(st.tuples(NAMES, st.none() | st.binary(max_size=30)), max_size=200),
)
@settings(max_examples=100, deadline=None)
def test_the_client_accepts_a_record_of_the_maximum_size(
    client: Producer, key: bytes | None, headers: list[tuple[str, bytes | None]]
) -> None:
    value = b"x" * (LIMIT - record_bytes(key, None, headers))
    assert record_bytes(key, value, headers) == LIMIT

    client.produce("t", value, key, headers=headers)

    with pytest.raises(KafkaException, match="MSG_SIZE_TOO_LARGE"):
        client.produce("t", b"x" * LIMIT, key, headers=headers)


@pytest.mark.parametrize("count", [1000, 1_700_000])
@pytest.mark.parametrize("text", [b"", None, b"12345"])
def test_a_dead_letter_fits_its_topic_however_many_headers_its_record_has(count: int, text: bytes | None) -> None:
    headers = [("h", text)] * count
    message = Message("leads.received", 0, 7, b"key", b"value", headers, None, (2, 1))

    letter = dead_letter(message, "test", Dead(Reason.EMPTY))

    assert output_bytes(letter) <= topic_limits()["leads.dead"]
    assert (letter.value == b"value") is (count == 1000)
    assert dict(letter.headers or [])["leadstream.offset"] == b"7"


@pytest.mark.integration
async def test_the_broker_accepts_a_record_of_the_maximum_size(stack: Stack) -> None:
    limit = topic_limits()["leads.received"]
    headers = [(f"h{n}", os.urandom(20)) for n in range(1000)]
    value = os.urandom(limit - record_bytes(b"key", None, headers))
    output = Output("leads.received", b"key", value, headers)
    assert output_bytes(output) == limit
    deliverer = Deliverer(stack.settings, "test")
    try:
        (delivery,) = await deliverer.deliver_each([output])
    finally:
        await deliverer.close()
    assert delivery.error == ""
