"""Sends claimed messages through a channel, at-least-once or at-most-once: see ``when_unsure``.

Guarantees, in addition to those of the engine (:mod:`infra.postgres.leased`):

- The row has the state ``sending`` before the first byte is sent after which the provider might accept the message. A
  worker whose lease has ended by then sends nothing.
- The content of a large message is read when it is sent, of at most ``_LARGE`` messages at a time.
- A message that the provider rejects, or that is older than ``expire_s``, is dead.
- Nothing is sent to a lead whose consent was withdrawn, or that was erased, since the event that caused the message.
  This is checked when the message is claimed, by ``_PERMISSION`` in messages_table.py. Before the request,
  :meth:`streams.campaigns.triggers.Consent.allows` decides.

Crash: before ``sending`` is written, or after the result is, the message is sent once. In the milliseconds between the
two, it is unknown whether the provider accepted it. With ``when_unsure=again`` (the default) it is sent again with the
same key: a provider that does not dedupe by key (``Channel.dedupes``) may then deliver it twice. With
``when_unsure=hold`` it is marked as failed and reported as dead with the reason ``unsure``.
"""

from __future__ import annotations

import asyncio

from infra.clock import Clock, now_us, seconds_us
from infra.errors import DependencyUnavailable, Verdict
from infra.outcomes import Reason, What
from infra.postgres.leased_pause import Pause
from infra.postgres.leased_rows import Done, Lease, Parked, Released
from infra.runtime import log
from schemas.codec import Codec, DecodeError
from sinks.messages import (
    Channel,
    DeliveryConfig,
    LeaseLost,
    OutgoingMessage,
    SendFailed,
    SendResult,
    Sent,
    Unsure,
)
from sinks.messages.messages_table import FinalState, MessageRow, MessagesTable

_UNAVAILABLE_S = 5.0  # delay of a message that was not sent because Postgres is unavailable
_LARGE = 4  # large messages that are in memory at the same time, each with a body of at most a million characters

_Result = Done | Parked | Released


class MessageDelivery:
    """Sends the messages of one channel; the engine calls :meth:`handle` with leases of one message."""

    def __init__(
        self,
        table: MessagesTable,
        channel: Channel,
        config: DeliveryConfig,
        *,
        pause: Pause,
        codec: Codec,
        stage: str,
        clock: Clock = now_us,
    ) -> None:
        self._table = table
        self._channel = channel
        self._expire_us = seconds_us(config.expire_s)
        self._may_repeat = channel.dedupes or config.when_unsure == "again"
        self._large = asyncio.Semaphore(_LARGE)
        self._pause = pause
        self._codec = codec
        self._log = log(stage)
        self._clock = clock

    async def handle(self, lease: Lease[MessageRow]) -> list[tuple[MessageRow, _Result]]:
        """Send the message of ``lease``, unless it has expired or is no longer permitted; return its result."""
        (row,) = lease.rows
        return [(row, await self._deliver(lease, row))]

    async def _deliver(self, lease: Lease[MessageRow], row: MessageRow) -> _Result:
        if row.unsure and not self._may_repeat:
            return _finished(row, "failed", What.DEAD, Reason.UNSURE)
        if row.erased:
            return _finished(row, "skipped", What.SKIPPED, Reason.ERASED)
        if row.withdrawn:
            return _finished(row, "skipped", What.SKIPPED, Reason.NO_CONSENT)
        if self._clock() - row.requested_at > self._expire_us:
            return _finished(row, "failed", What.DEAD, Reason.EXPIRED, row.last_error)
        if row.request is not None:
            return await self._send(lease, row, row.request)
        async with self._large:
            content = await self._table.request(row)
            return Released() if content is None else await self._send(lease, row, content)

    async def _send(self, lease: Lease[MessageRow], row: MessageRow, content: bytes) -> _Result:
        try:
            request = self._codec.decode(content).record
        except DecodeError as error:  # the schema that it was consumed with is not known any more
            return _finished(row, "failed", What.DEAD, error.dead.reason)
        message = OutgoingMessage(
            request["message_id"], request["to"], request["sender"], request["subject"], request["body"]
        )
        started = False

        async def before_sending() -> None:
            nonlocal started
            if not await self._table.mark_sending(lease, row):
                raise LeaseLost
            started = True

        result: SendResult
        try:
            async with asyncio.timeout_at(lease.deadline):
                result = await self._channel.send(message, before_sending)
        except TimeoutError:
            result = Unsure(Reason.TIMEOUT) if started else SendFailed(Verdict.RETRY, Reason.TIMEOUT)
        except LeaseLost:
            self._log.warning("lease lost before sending", extra={"fields": {"message_id": row.key}})
            return Released()
        except DependencyUnavailable:
            # Raised by before_sending, so nothing was sent: the state can be ``waiting`` again, which Parked writes.
            until = self._clock() + seconds_us(_UNAVAILABLE_S)
            return Parked(Reason.UNAVAILABLE, row.campaign, until=until, attempts=0)
        return self._settle(row, result)

    def _settle(self, row: MessageRow, result: SendResult) -> _Result:
        if isinstance(result, Unsure):
            if self._may_repeat:
                return Parked(result.reason, row.campaign)
            return _finished(row, "failed", What.DEAD, Reason.UNSURE, result.reason.value)
        if isinstance(result, Sent):
            self._pause.answered()
            return _finished(row, "sent", What.SENT, provider_id=result.provider_id)
        if result.verdict in (Verdict.PAUSE, Verdict.REFRESH):
            until = self._pause.begin(result.reason, wait_s=result.wait_s, detail=result.detail)
            return Parked(result.reason, _detail(row, result.detail), until=until, attempts=0)
        self._pause.answered()
        if result.verdict is Verdict.DEAD:
            return _finished(row, "failed", What.DEAD, result.reason, result.detail)
        return Parked(result.reason, _detail(row, result.detail), at_least_s=result.wait_s)


def _finished(
    row: MessageRow, state: str, what: What, reason: Reason | None = None, detail: str = "", provider_id: str = ""
) -> Done:
    return Done(what, reason, _detail(row, detail), value=FinalState(state, provider_id))


def _detail(row: MessageRow, detail: str) -> str:
    return f"{row.campaign} {detail}".strip()
