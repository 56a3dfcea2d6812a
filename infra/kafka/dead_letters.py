"""Dead letters: the record as it came, bit for bit, with where, at which stage and why in its headers."""

from __future__ import annotations

import time
from collections import deque

from confluent_kafka import Message

from infra.errors import TooManyDead
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


class DeadShare:
    """The share of dead records among the last ``window`` that a stage saw; more than ``most`` of them stops it."""

    def __init__(self, window: int, most: float) -> None:
        self._window = window
        self._most = most
        self._batches: deque[tuple[int, int]] = deque()
        self._records = 0
        self._deads = 0

    def saw(self, records: int, dead: int) -> None:
        """Count a batch in. Raises TooManyDead when the window is full and the share too large."""
        self._batches.append((records, dead))
        self._records += records
        self._deads += dead
        while self._records - self._batches[0][0] >= self._window:
            gone = self._batches.popleft()
            self._records -= gone[0]
            self._deads -= gone[1]
        if self._records >= self._window and self._deads > self._most * self._records:
            raise TooManyDead(
                f"{self._deads} of the last {self._records} records were dead, more than a share of {self._most}. "
                "Nothing more is taken; look at `leadstream dead list`, mend the producer or the schema, start again."
            )
