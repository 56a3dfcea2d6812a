"""Who sent a dead record, and the alarm when one sender sends many: the others are not affected.

A flood of dead records of one sender is a metric by sender (with an alert) and a log event each minute.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from confluent_kafka import Message

from infra import metrics
from infra.runtime import log

UNKNOWN = "unknown"
_OTHER = "other"  # label of all senders beyond the first ones: a sender's name is free text
_MAX_SENDERS = 50
_FLOOD = 100  # dead records of a sender in one window
_WINDOW_S = 60.0
_MAX_NAME = 100  # characters
# Headers that name the sender, in this order; the second and the third are those of CloudEvents over Kafka.
_HEADERS = ("source", "ce_source", "ce-source", "sender", "client-id", "client.id")
_TENANT = re.compile(rb"([a-z0-9][a-z0-9_-]{0,62}):")


def sender_of(message: Message) -> str:
    """Return who sent a record that cannot be decoded: from its headers, or the tenant in its key, else "unknown"."""
    headers = dict(message.headers() or ())
    for name in _HEADERS:
        if text := headers.get(name):
            return sender_name(text[: 4 * _MAX_NAME].decode("utf-8", "replace"))
    tenant = _TENANT.match(message.key() or b"")
    return tenant[1].decode() if tenant else UNKNOWN


def sender_name(text: str) -> str:
    """Return ``text`` as the name of a sender: at most 100 printable characters, or "unknown"."""
    return "".join(c for c in text[:_MAX_NAME] if c.isprintable()).strip() or UNKNOWN


@dataclass(slots=True)
class _Window:
    since: float
    records: int = 0
    logged: bool = False


class DeadBySender:
    """Counts the dead records of a ``stage`` by sender. ``clock`` returns seconds."""

    def __init__(self, stage: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._stage = stage
        self._clock = clock
        self._labels: set[str] = set()
        self._windows: dict[str, _Window] = {}
        self._log = log(stage)

    def count(self, sender: str) -> None:
        """Count one dead record; log an error when its sender has sent many within a minute."""
        label = sender if sender in self._labels or len(self._labels) < _MAX_SENDERS else _OTHER
        self._labels.add(label)
        metrics.DEAD_LETTERS.labels(self._stage, label).inc()
        if sender not in self._windows and len(self._windows) >= _MAX_SENDERS:
            self._forget()
        window = self._windows.setdefault(sender, _Window(self._clock()))
        if self._clock() >= window.since + _WINDOW_S:
            window.since, window.records, window.logged = self._clock(), 0, False
        window.records += 1
        if window.records >= _FLOOD and not window.logged:
            window.logged = True
            fields = {"sender": sender, "records": window.records, "seconds": _WINDOW_S}
            self._log.error(
                "a sender sends many records that are dead; see `leadstream dead list`", extra={"fields": fields}
            )

    def _forget(self) -> None:
        """Forget the senders whose minute is over, or all of them: many names are no flood of one sender."""
        now = self._clock()
        current = {name: window for name, window in self._windows.items() if now < window.since + _WINDOW_S}
        self._windows = current if len(current) < _MAX_SENDERS else {}
