"""Dead letters: an unchanged copy of a record, with its source, the stage and the reason in headers."""

from __future__ import annotations

from typing import NamedTuple

from confluent_kafka import Message

from infra.clock import now_us
from infra.kafka.producer import Output
from infra.kafka.sizes import record_bytes
from infra.outcomes import Dead

TOPIC = "leads.dead"
PREFIX = "leadstream."
LARGEST = 16_777_216  # maximum bytes of a record in a dead letter; the topic's limit leaves room for the added headers


class Origin(NamedTuple):
    """The event in a dead record, as far as it could be read, and who sent it; empty texts: unknown."""

    tenant: str = ""
    event_id: str = ""
    sender: str = ""


_UNKNOWN = Origin()


def dead_letter(message: Message, stage: str, dead: Dead, exception: str = "", origin: Origin = _UNKNOWN) -> Output:
    """Return the record for ``leads.dead``: same key, value and headers, plus ``leadstream.*`` headers (UTF-8 text).

    They are topic, partition, offset, stage, reason, detail (never a value of the record), exception (its type), at
    (microseconds since 1970), and tenant, event_id and sender of ``origin``. They are the last headers: if the
    record has headers of these names, too, the last one of each name counts.

    Headers of which one has a name that is not UTF-8 are not copied: :mod:`infra.kafka.headers` replaces them.

    A topic's limit counts compressed bytes, so a record can be any size here. One over ``LARGEST`` is not copied: the
    letter names its coordinates, and has neither its key nor its value nor its headers.
    """
    key, value, headers = message.key(), message.value(), message.headers() or []
    size = record_bytes(key, value, headers)
    detail = dead.detail[:1000]
    if size > LARGEST:
        key, value, headers = None, None, []
        detail = f"{size} bytes are too many for {TOPIC}: read the record in its source topic while retained; {detail}"
    own = {
        "topic": message.topic(),
        "partition": message.partition(),
        "offset": message.offset(),
        "stage": stage,
        "reason": dead.reason.value,
        "detail": detail,
        "exception": exception,
        "at": now_us(),
        "tenant": origin.tenant,
        "event_id": origin.event_id,
        "sender": origin.sender,
    }
    kept = [*headers, *((PREFIX + name, str(text).encode()) for name, text in own.items())]
    return Output(TOPIC, key, value, kept)
