"""Consumes ``leads.messages-requested`` and stores the messages of its channel in ``messages_sent``.

Guarantees: when :meth:`MessageRequests.apply` returns, each message of the batch has a row and the offsets may be
committed. A repeated batch changes nothing. No provider is called here, so a slow provider does not delay the topic.
A request for a channel that does not exist is dead; one for another channel is left to that channel's consumer.
With ``once_per: lead``, a later event's request for the same message is not stored and is reported as skipped.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from confluent_kafka import Message

from infra.kafka.dead_letters import dead_letter
from infra.kafka.outcome_records import OutcomeRecords
from infra.kafka.processor import Outputs
from infra.kafka.producer import Output
from infra.outcomes import Dead, Problem, Reason, What
from schemas.codec import Codec, DecodeError
from sinks import record_checks
from sinks.accounts import UNKNOWN_TENANT, Accounts, Wakes
from sinks.messages.messages_table import MessageRequest, MessagesTable

TOPIC = "leads.messages-requested"
RECORD = "message_request"
# Maximum characters. message_id is a key of an index, whose entries are limited to 2,704 bytes.
_TEXTS = dict.fromkeys(("tenant", "campaign", "channel", "purpose", "once_per"), 200)
_TEXTS |= {"message_id": 500, "event_id": 500, "to": 1_000, "sender": 1_000, "subject": 2_000, "body": 1_048_576}


@dataclass(slots=True)
class RequestedBatch:
    """The requests of a batch for this channel, in order, and the dead letters of invalid records."""

    requests: list[MessageRequest] = field(default_factory=list)
    dead: list[Output] = field(default_factory=list)


class MessageRequests:
    """The batch loop's processor. Sets ``wake`` when it has stored work for the engine of this process.

    ``channels``: the names of all channels of this installation; empty: unknown. ``accounts``: of the tenants; without
    it there is one account. A request of a tenant that has no account is dead.
    """

    def __init__(
        self,
        table: MessagesTable,
        codec: Codec,
        records: OutcomeRecords,
        *,
        channel: str,
        stage: str,
        wake: asyncio.Event | Wakes,
        channels: Collection[str] = (),
        accounts: Accounts[Any] | None = None,
    ) -> None:
        self._table = table
        self._codec = codec
        self._records = records
        self._channel = channel
        self._stage = stage
        self._wakes = wake if isinstance(wake, Wakes) else Wakes(wake)
        self._channels = channels
        self._accounts = accounts

    def prepare(self, messages: Sequence[Message]) -> RequestedBatch:
        """Decode ``messages`` and keep the requests for this channel."""
        batch = RequestedBatch()
        for message in messages:
            request = self._with_account(_read(self._codec, message))
            if isinstance(request, Dead):
                batch.dead.append(dead_letter(message, self._stage, request))
            elif request.channel == self._channel:
                batch.requests.append(request)
            elif self._channels and request.channel not in self._channels:
                names = ", ".join(self._channels)
                dead = Dead(Reason.INVALID_FIELD, (Problem("/channel", f"no such channel; there are: {names}"),))
                batch.dead.append(dead_letter(message, self._stage, dead))
        return batch

    async def apply(self, prepared: RequestedBatch) -> AsyncGenerator[Outputs, None]:
        """Insert the messages in one statement, wake the engine, and report requests that were already stored."""
        if not prepared.requests:
            yield prepared.dead
            return
        firsts: dict[str, MessageRequest] = {}
        for request in prepared.requests:
            firsts.setdefault(request.message_id, request)
        earlier = await self._table.add(list(firsts.values()))
        for account in {request.account for request in firsts.values()}:
            self._wakes(account).set()
        event_ids = {message_id: request.event_id for message_id, request in firsts.items()} | earlier
        skipped = [request for request in prepared.requests if event_ids[request.message_id] != request.event_id]
        yield [*prepared.dead, *map(self._skipped, skipped)]

    def _with_account(self, request: MessageRequest | Dead) -> MessageRequest | Dead:
        """Return ``request`` with the account that sends it, or Dead if its tenant has none."""
        if isinstance(request, Dead) or self._accounts is None or request.channel != self._channel:
            return request
        scope = self._accounts.scope(request.tenant)
        if scope is None:
            return UNKNOWN_TENANT
        if not self._accounts.has_account(request.tenant):
            problem = Problem("/tenant", f"its file has no sender.{self._channel}: add it, then replay this record")
            return Dead(Reason.MISCONFIGURED, (problem,))
        return replace(request, account=scope)

    def _skipped(self, request: MessageRequest) -> Output:
        return self._records.build(
            What.SKIPPED,
            Reason.ALREADY_ASKED,
            tenant=request.tenant,
            event_id=request.event_id,
            lead_id=request.lead_id,
            source=(request.topic, request.partition, request.offset),
            detail=request.campaign,
        )


def _read(codec: Codec, message: Message) -> MessageRequest | Dead:
    payload = message.value()
    if not payload:
        return Dead(Reason.EMPTY)
    try:
        decoded = codec.decode(payload)
    except DecodeError as error:
        return error.dead
    if decoded.type != RECORD:
        return Dead(Reason.UNKNOWN_EVENT_TYPE, (Problem("", f"this topic is for records of type {RECORD}"),))
    record = decoded.record
    if dead := record_checks.check(record, texts=_TEXTS, time="requested_at", required="message_id"):
        return dead
    return MessageRequest(
        message_id=record["message_id"],
        tenant=record["tenant"],
        lead_id=record["lead_id"].lower(),
        event_id=record["event_id"],
        campaign=record["campaign"],
        channel=record["channel"],
        purpose=record["purpose"],
        once_per=record["once_per"],
        topic=message.topic() or "",
        partition=message.partition() or 0,
        offset=message.offset() or 0,
        requested_at=record["requested_at"],
        request=payload,
    )
