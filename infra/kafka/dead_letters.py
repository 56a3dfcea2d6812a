"""Dead letters: the record as it came, bit for bit, with where, at which stage and why in its headers."""

from __future__ import annotations

import time

from confluent_kafka import Message

from infra.kafka.producer import Output
from infra.outcomes import Dead

TOPIC = "leads.dead"
PREFIX = "leadstream."


def dead_letter(message: Message, stage: str, dead: Dead, exception: str = "") -> Output:
    """Return the record for ``leads.dead``: same key, value and headers, plus ``leadstream.*`` headers (UTF-8 text).

    They are topic, partition, offset, stage, reason, detail (never a value of the record), exception (its type) and at
    (microseconds since 1970). Where the record itself died before (a replay), its old ``leadstream.*`` headers go.
    """
    said = {
        "topic": message.topic(),
        "partition": message.partition(),
        "offset": message.offset(),
        "stage": stage,
        "reason": dead.reason.value,
        "detail": dead.detail[:1000],
        "exception": exception,
        "at": time.time_ns() // 1000,
    }
    headers = [(name, value) for name, value in message.headers() or [] if not name.startswith(PREFIX)]
    headers += [(PREFIX + name, str(value).encode()) for name, value in said.items()]
    return Output(TOPIC, message.key(), message.value(), headers)
