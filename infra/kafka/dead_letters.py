"""Dead letters: an unchanged copy of a record, with its source, the stage and the reason in headers."""

from __future__ import annotations

from collections import deque

from confluent_kafka import Message

from infra.clock import now_us
from infra.errors import TooManyDead
from infra.kafka.producer import Output
from infra.kafka.sizes import record_bytes
from infra.outcomes import Dead

TOPIC = "leads.dead"
PREFIX = "leadstream."
LARGEST = 16_777_216  # maximum bytes of a record in a dead letter; the topic's limit leaves room for the added headers


def dead_letter(message: Message, stage: str, dead: Dead, exception: str = "") -> Output:
    """Return the record for ``leads.dead``: same key, value and headers, plus ``leadstream.*`` headers (UTF-8 text).

    They are topic, partition, offset, stage, reason, detail (never a value of the record), exception (its type) and at
    (microseconds since 1970). Existing ``leadstream.*`` headers (of a replayed dead letter) are removed.

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
    }
    kept = [(name, text) for name, text in headers if not name.startswith(PREFIX)]
    kept += [(PREFIX + name, str(text).encode()) for name, text in own.items()]
    return Output(TOPIC, key, value, kept)


class DeadShare:
    """The share of dead records (0 to 1) among the last ``window`` records of a stage, with its maximum."""

    def __init__(self, window: int, max_share: float) -> None:
        self._window = window
        self._max_share = max_share
        self._batches: deque[tuple[int, int]] = deque()
        self._records = 0
        self._deads = 0

    def add(self, records: int, dead: int) -> None:
        """Count a batch with ``dead`` dead records. Raises TooManyDead when the share exceeds ``max_share``."""
        self._batches.append((records, dead))
        self._records += records
        self._deads += dead
        while self._records - self._batches[0][0] >= self._window:
            oldest = self._batches.popleft()
            self._records -= oldest[0]
            self._deads -= oldest[1]
        if self._deads > self._max_share * max(self._records, self._window):
            raise TooManyDead(
                f"{self._deads} of the last {self._records} records are dead: more than a share of {self._max_share} "
                f"of {max(self._records, self._window)} records. Consuming has stopped. "
                "Run `leadstream dead list`, fix the producer or the schema, then restart the process."
            )
