"""What the consumer of ``leads.messages-requested`` does: note which messages its channel has to send, nothing else.

Guarantee: when :meth:`Requests.apply` returns, every message of the batch has its row, so the offsets may be committed.
It calls no provider: a slow one does not hold the topic. Repeating a batch, or asking for the same ``message_id`` with
another event (``once_per: lead``), changes nothing; the latter is told as skipped.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from confluent_kafka import Message

from infra import metrics
from infra.kafka.dead_letters import dead_letter
from infra.kafka.processor import Effects
from infra.kafka.producer import Output
from infra.outcomes import Dead, Problem, Reason, What
from schemas.codec import Codec, DecodeError
from sinks.messages.store import Ask, Store

TOPIC = "leads.messages-requested"
OUTCOMES = "leads.outcomes"
RECORD = "message_request"
_TEXTS = ("message_id", "tenant", "event_id", "campaign", "channel", "purpose")
_LATEST = 4_102_444_800_000_000  # 2100-01-01 in microseconds


@dataclass(slots=True)
class Prepared:
    """The channel's requests of a batch in their order, and the records that say nothing understandable."""

    asks: list[Ask] = field(default_factory=list)
    dead: list[Output] = field(default_factory=list)


class Requests:
    """The batch loop's processor. Sets ``wake`` when there is work for the delivery of this process."""

    def __init__(
        self, store: Store, codec: Codec, *, channel: str, stage: str, wake: asyncio.Event, clock: Callable[[], int]
    ) -> None:
        self._store = store
        self._codec = codec
        self._outcome = codec.encoder("outcome")
        self._channel = channel
        self._stage = stage
        self._wake = wake
        self._clock = clock

    def prepare(self, messages: Sequence[Message]) -> Prepared:
        """Decode, and keep what is for this channel."""
        prepared = Prepared()
        for message in messages:
            ask = _read(self._codec, message)
            if isinstance(ask, Dead):
                prepared.dead.append(dead_letter(message, self._stage, ask))
            elif ask.channel == self._channel:
                prepared.asks.append(ask)
        return prepared

    async def apply(self, prepared: Prepared) -> Effects:
        """Insert the rows in one statement and wake the delivery."""
        if not prepared.asks:
            return Effects(outputs=prepared.dead, dead=len(prepared.dead))
        firsts: dict[str, Ask] = {}
        for ask in prepared.asks:
            firsts.setdefault(ask.message_id, ask)
        before = await self._store.ask(list(firsts.values()))
        self._wake.set()
        asked = {message_id: ask.event_id for message_id, ask in firsts.items()} | before
        again = [self._again(ask) for ask in prepared.asks if asked[ask.message_id] != ask.event_id]
        return Effects(outputs=[*prepared.dead, *again], dead=len(prepared.dead))

    def _again(self, ask: Ask) -> Output:
        metrics.OUTCOMES.labels(self._stage, What.SKIPPED.value, Reason.ALREADY_ASKED.value).inc()
        record = {
            "at": self._clock(),
            "stage": self._stage,
            "what": What.SKIPPED.value,
            "reason": Reason.ALREADY_ASKED.value,
            "tenant": ask.tenant,
            "event_id": ask.event_id,
            "lead_id": ask.lead_id,
            "topic": ask.topic,
            "partition": ask.partition,
            "offset": ask.offset,
            "detail": ask.campaign,
        }
        return Output(OUTCOMES, ask.lead_id.encode(), self._outcome(record))


def _read(codec: Codec, message: Message) -> Ask | Dead:
    payload = message.value()
    if not payload:
        return Dead(Reason.EMPTY)
    try:
        decoded = codec.decode(payload)
    except DecodeError as error:
        return error.dead
    if decoded.type != RECORD:
        return Dead(Reason.UNKNOWN_EVENT_TYPE, (Problem("", f"only {RECORD} belongs on this topic"),))
    asked = decoded.record
    try:
        uuid.UUID(asked["lead_id"])
    except ValueError:
        return Dead(Reason.INVALID_FIELD, (Problem("/lead_id", "is not a UUID"),))
    if any("\0" in asked[name] for name in _TEXTS) or not 0 <= asked["requested_at"] < _LATEST:
        return Dead(Reason.INVALID_FIELD, (Problem("", "holds a NUL character, or an absurd time"),))
    return Ask(
        message_id=asked["message_id"],
        tenant=asked["tenant"],
        lead_id=asked["lead_id"],
        event_id=asked["event_id"],
        campaign=asked["campaign"],
        channel=asked["channel"],
        purpose=asked["purpose"],
        once_per=asked["once_per"],
        topic=message.topic() or "",
        partition=message.partition() or 0,
        offset=message.offset() or 0,
        requested_at=asked["requested_at"],
        request=payload,
    )
