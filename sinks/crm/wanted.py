"""What the consumer of ``leads.crm-<crm>`` does: note which version of which lead is wanted, nothing else.

Guarantee: when :meth:`Wanted.apply` returns, ``crm_sync`` wants at least the versions of the batch, so the offsets may
be committed. It never calls the CRM: a slow CRM does not hold the topic. Repeating a batch changes nothing.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from confluent_kafka import Message

from infra.kafka.dead_letters import dead_letter
from infra.kafka.processor import Effects
from infra.kafka.producer import Output
from infra.outcomes import Dead, Problem, Reason
from schemas.codec import Codec, DecodeError
from sinks.crm.store import Store, Want

RECORD = "crm_wanted"


@dataclass(slots=True)
class Prepared:
    """The newest wanted version of each lead in the batch, and the records that say nothing understandable."""

    wants: dict[str, Want] = field(default_factory=dict)
    dead: list[Output] = field(default_factory=list)


class Wanted:
    """The batch loop's processor. Sets ``wake`` when there is work for the reconciler of this process."""

    def __init__(self, store: Store, codec: Codec, stage: str, wake: asyncio.Event) -> None:
        self._store = store
        self._codec = codec
        self._stage = stage
        self._wake = wake

    def prepare(self, messages: Sequence[Message]) -> Prepared:
        """Decode, and keep one want a lead: the highest version."""
        prepared = Prepared()
        for message in messages:
            want = _read(self._codec, message.value() or b"")
            if isinstance(want, Dead):
                prepared.dead.append(dead_letter(message, self._stage, want))
                continue
            known = prepared.wants.get(want.lead_id)
            if known is None or known.version < want.version:
                prepared.wants[want.lead_id] = want
        return prepared

    async def apply(self, prepared: Prepared) -> Effects:
        """Upsert the wants in one statement and wake the reconciler."""
        if prepared.wants:
            await self._store.want(list(prepared.wants.values()))
            self._wake.set()
        return Effects(outputs=prepared.dead, dead=len(prepared.dead))


def _read(codec: Codec, payload: bytes) -> Want | Dead:
    if not payload:
        return Dead(Reason.EMPTY)
    try:
        decoded = codec.decode(payload)
    except DecodeError as error:
        return error.dead
    if decoded.type != RECORD:
        return Dead(Reason.UNKNOWN_EVENT_TYPE, (Problem("", f"only {RECORD} belongs on this topic"),))
    record = decoded.record
    try:
        uuid.UUID(record["lead_id"])
    except ValueError:
        return Dead(Reason.INVALID_FIELD, (Problem("/lead_id", "is not a UUID"),))
    return Want(record["lead_id"], record["tenant"], record["version"], record["decided_at"])
