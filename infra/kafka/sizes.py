"""The size limit of each topic, and an upper bound of the size of a record.

A record over its topic's limit can never be delivered. So its size is checked where it is built, before any effect that
depends on its delivery. Source: Kafka's record batch format 2 (kafka.apache.org, "Message format").
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from infra.kafka.producer import Output
from infra.kafka.topics import load_topics

LIMIT = "max.message.bytes"  # the broker applies it to a batch, which may hold a single record
_BATCH = 61  # header of a batch
_RECORD = 36  # length, attributes, timestamp, offset, and the lengths of key, value and headers, as varints
_HEADER = 10  # the lengths of a header's name and value


@cache
def topic_limits() -> dict[str, int]:
    """Return the maximum bytes of a batch, by topic."""
    return {name: int(topic.config[LIMIT]) for name, topic in load_topics().items()}


def record_bytes(
    key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes | None]] | None = None
) -> int:
    """Return an upper bound of the bytes of an uncompressed batch that holds only this record."""
    size = _BATCH + _RECORD + len(key or b"") + len(value or b"")
    for name, text in headers or ():
        size += _HEADER + utf8_bytes(name) + len(text or b"")
    return size


def output_bytes(output: Output) -> int:
    """Return the same upper bound for ``output``."""
    return record_bytes(output.key, output.value, output.headers)


def fits(output: Output) -> bool:
    """Return whether ``output`` can be delivered to its topic; True for a topic that is not in topics.toml."""
    limit = topic_limits().get(output.topic)
    return limit is None or output_bytes(output) <= limit


def utf8_bytes(text: str) -> int:
    """Return the length of ``text`` in UTF-8, in bytes."""
    return len(text) if text.isascii() else len(text.encode())
