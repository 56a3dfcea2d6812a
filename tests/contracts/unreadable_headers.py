"""Records with a header name that is not UTF-8. librdkafka's client for Python cannot write one."""

from __future__ import annotations

from typing import Any

from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy  # type: ignore[import-untyped]

from infra.kafka.headers import UNREADABLE_HEADERS
from tests.contracts.hostile_records import Hostile, encoded, good_record


class UnreadableName(str):
    """A header name whose bytes are not UTF-8."""

    __slots__ = ()

    def encode(self, *_: Any) -> bytes:
        """Return the bytes that are written."""
        return b"\xff\xfe"


def record_batch(records: list[tuple[bytes | None, bytes | None, list[Any]]], compression: int = 0) -> Any:
    """Return a builder of a record batch, filled with (key, value, headers)."""
    builder = _DefaultRecordBatchBuilderPy(2, compression, False, -1, -1, -1, 1 << 20)
    for number, (key, value, headers) in enumerate(records):
        builder.append(number, 1000 + number, key, value, headers)
    return builder


async def send_unreadable(bootstrap: str, topic: str, unique: str) -> dict[tuple[str, int, int], Hostile]:
    """Produce a good and a bad value with such a header; return the records by place, as a dead letter has them."""
    sent = {}
    async with AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
        for what, value in (("good", encoded(topic, good_record(topic, unique))), ("bad", b"\xffbad")):
            headers = [("traceparent", b"x"), (UnreadableName("bad"), b"\xff"), ("last", b"1")]
            batch = producer.create_batch()
            batch.append(timestamp=None, key=b"k", value=value)  # replaced: aiokafka would not write the name
            batch._builder = record_batch([(b"k", value, headers)])
            found = await (await producer.send_batch(batch, topic, partition=0))
            kind = f"a header name that is not UTF-8, {what} value"
            sent[topic, found.partition, found.offset] = Hostile(kind, value, b"k", list(UNREADABLE_HEADERS))
    return sent
