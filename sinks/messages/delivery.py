"""What message delivery does with a lease: send the message, at least once, and once but for a crash at one moment.

Guarantees, beside those of the engine (:mod:`infra.postgres.leased`):

- The row's state is ``sending`` before the first byte goes out after which the provider might accept the message. A
  worker whose lease has ended by then hands nothing over.
- A message that waited too long, or that the provider rejects, is dead.
- Consent is looked at when a message is claimed: one that waited is not sent to a person who has withdrawn it, nor to a
  lead that was erased.

Crash: before ``sending``, or after the result is written, it has no effect: the message is sent once. Between the two,
some milliseconds, nobody can know. By default (``when_unsure=again``) the message is sent again, under the same key:
at-least-once, and twice where the provider does not dedupe by our key (``Channel.dedupes``) and had accepted it. With
``when_unsure=hold`` it is never sent twice: it fails as ``unsure`` and is reported as dead, for a person to decide.
"""

from __future__ import annotations

import asyncio

from infra.clock import Clock, now_us, seconds_us
from infra.errors import DependencyUnavailable, Verdict
from infra.outcomes import Reason, What
from infra.postgres.leased_pause import Pause
from infra.postgres.leased_rows import Done, Lease, Parked, Released
from infra.runtime import log
from schemas.codec import Codec
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
from sinks.messages.messages_table import Ended, MessageRow, MessagesTable

_UNAVAILABLE_S = 5.0  # a message that was not handed over, because Postgres is unavailable, waits this long

_Result = Done | Parked | Released


class MessageDelivery:
    """The delivery of one channel; :meth:`handle` is the engine's ``handle``, for leases of one message."""

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
        self._pause = pause
        self._codec = codec
        self._log = log(stage)
        self._clock = clock

    async def handle(self, lease: Lease[MessageRow]) -> list[tuple[MessageRow, _Result]]:
        """Send the message of ``lease``, unless it is not to be sent any more."""
        (row,) = lease.rows
        return [(row, await self._deliver(lease, row))]

    async def _deliver(self, lease: Lease[MessageRow], row: MessageRow) -> _Result:
        if row.unsure and not self._may_repeat:
            return _ended(row, "failed", What.DEAD, Reason.UNSURE)
        if row.erased:
            return _ended(row, "skipped", What.SKIPPED, Reason.ERASED)
        if row.withdrawn:
            return _ended(row, "skipped", What.SKIPPED, Reason.NO_CONSENT)
        if self._clock() - row.requested_at > self._expire_us:
            return _ended(row, "failed", What.DEAD, Reason.EXPIRED, row.last_error)
        return await self._send(lease, row)

    async def _send(self, lease: Lease[MessageRow], row: MessageRow) -> _Result:
        request = self._codec.decode(row.request).record
        message = OutgoingMessage(
            request["message_id"], request["to"], request["sender"], request["subject"], request["body"]
        )
        handed: list[bool] = []

        async def handing_over() -> None:
            if not await self._table.sending(lease, row):
                raise LeaseLost
            handed.append(True)

        result: SendResult
        try:
            async with asyncio.timeout_at(lease.deadline):
                result = await self._channel.send(message, handing_over)
        except TimeoutError:
            result = Unsure(Reason.TIMEOUT) if handed else SendFailed(Verdict.RETRY, Reason.TIMEOUT)
        except LeaseLost:
            self._log.warning("lease lost before sending", extra={"fields": {"message_id": row.key}})
            return Released()
        except DependencyUnavailable:
            # Postgres. Nothing was handed over, so ``sending``, if that was written, can be taken back.
            until = self._clock() + seconds_us(_UNAVAILABLE_S)
            return Parked(Reason.UNAVAILABLE, row.campaign, until=until, attempts=0)
        return self._meaning(row, result)

    def _meaning(self, row: MessageRow, result: SendResult) -> _Result:
        if isinstance(result, Unsure):
            if self._may_repeat:
                return Parked(result.reason, row.campaign)
            return _ended(row, "failed", What.DEAD, Reason.UNSURE, result.reason.value)
        if isinstance(result, Sent):
            self._pause.answered()
            return _ended(row, "sent", What.SENT, provider_id=result.provider_id)
        if result.verdict in (Verdict.PAUSE, Verdict.REFRESH):
            until = self._pause.begin(result.reason, wait_s=result.wait_s, detail=result.detail)
            return Parked(result.reason, _detail(row, result.detail), until=until, attempts=0)
        self._pause.answered()
        if result.verdict is Verdict.DEAD:
            return _ended(row, "failed", What.DEAD, result.reason, result.detail)
        return Parked(result.reason, _detail(row, result.detail), at_least_s=result.wait_s)


def _ended(
    row: MessageRow, state: str, what: What, reason: Reason | None = None, detail: str = "", provider_id: str = ""
) -> Done:
    return Done(what, reason, _detail(row, detail), value=Ended(state, provider_id))


def _detail(row: MessageRow, detail: str) -> str:
    return f"{row.campaign} {detail}".strip()
