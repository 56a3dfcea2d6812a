"""The limits of a batch of the batch loop."""

from __future__ import annotations

from dataclasses import dataclass

from confluent_kafka import Message

_HEADER_BYTES = 100  # of a header in memory, without its name and value


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """The limits of a batch: records, bytes (a single record may exceed them), and how long it waits to fill.

    ``record_bytes`` is added to the size of each record: the memory that a stage needs for it, whatever its size.
    """

    size: int
    max_bytes: int
    linger_ms: int
    record_bytes: int = 500

    def bytes_of(self, message: Message) -> int:
        """Return the size of a record for ``max_bytes``: value, key, headers and ``record_bytes``."""
        size = self.record_bytes + len(message) + len(message.key() or b"")
        for name, value in message.headers() or ():
            size += len(name) + len(value or b"") + _HEADER_BYTES
        return size
