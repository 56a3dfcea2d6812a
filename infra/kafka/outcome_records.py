"""Outcomes as records of ``leads.outcomes``: the one place where they are built, encoded and counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from infra import metrics
from infra.clock import Clock, now_us
from infra.kafka.producer import Output
from infra.outcomes import Reason, What

TOPIC = "leads.outcomes"
_MAX_DETAIL = 1000  # characters
NOWHERE = ("", -1, -1)  # of an outcome that is not about a record

Coordinates = tuple[str, int, int]  # topic, partition, offset


class OutcomeRecords:
    """Builds the outcomes of one ``stage`` (its consumer group).

    ``encode`` encodes the record type ``outcome`` (see :meth:`schemas.codec.Codec.encoder`).
    """

    def __init__(self, stage: str, encode: Callable[[dict[str, Any]], bytes], clock: Clock = now_us) -> None:
        self._stage = stage
        self._encode = encode
        self._clock = clock

    def build(
        self,
        what: What,
        reason: Reason | None = None,
        *,
        tenant: str,
        event_id: str = "",
        lead_id: str = "",
        version: int = 0,
        source: Coordinates = NOWHERE,
        detail: str = "",
        count: int = 1,
    ) -> Output:
        """Return the record and count it (``count`` times) in ``leadstream_outcomes``.

        Its key is the lead's id, or the event's id if the lead is unknown. ``detail`` holds codes and names, never a
        value of the lead or the text of a response.
        """
        metrics.OUTCOMES.labels(self._stage, what.value, reason.value if reason else "").inc(count)
        topic, partition, offset = source
        record = {
            "at": self._clock(),
            "stage": self._stage,
            "what": what.value,
            "reason": reason.value if reason else "",
            "tenant": tenant,
            "event_id": event_id,
            "lead_id": lead_id,
            "version": version,
            "topic": topic,
            "partition": partition,
            "offset": offset,
            "detail": detail[:_MAX_DETAIL],
        }
        return Output(TOPIC, (lead_id or event_id).encode(), self._encode(record))
