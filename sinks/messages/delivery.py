"""Send every message that is asked for: at least once, and once but for a crash at one moment.

Guarantees:

- A message is in at most one worker's hands at a time: claimed by a lease, and its row says ``sending`` before the
  first byte goes out by which the provider might take it. Whoever has lost the lease by then hands nothing over.
- A crash before ``sending``, or after ``sent``, costs nothing: it is sent once. Between the two, some milliseconds,
  nobody can know. By default (``when_unsure=again``) it is sent again, under the same key: never left out, and twice
  where the provider does not dedupe by our key (``Channel.dedupes``) and had taken it. With ``when_unsure=hold`` it is
  never sent twice: it is given up as ``unsure`` and told as dead, for a person to decide.
- A message that fails for now is parked by its key, alone, with backoff and jitter; the topic never waits for it. One
  that the provider will never take, or that waited for too long, is dead. A provider in trouble as a whole (no
  connection, login refused) rests, and then goes on with all of them at once.
- Consent is looked at again when a message is claimed: one that waited is not sent to a person who has withdrawn it,
  nor to a lead that was erased.
- Outcomes follow the write to Postgres, at least once unless the process dies in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from infra import metrics
from infra.errors import DependencyAway, Verdict
from infra.kafka.producer import Output
from infra.outcomes import Reason, What
from infra.runtime import Stop, log
from schemas.codec import Codec
from sinks.messages import Channel, DeliveryConfig, Failed, LeaseLost, Message, Result, Sent, Unsure
from sinks.messages.requests import OUTCOMES
from sinks.messages.store import Claim, Store

_AWAY_S = (0.1, 5.0)
_REST_MAX_S = 30.0
_AHEAD = 8  # messages claimed, times connections: one statement for many, and no connection waits for it
_LAST_WORDS_S = 5.0  # for outcomes that are not delivered when asked to stop
_OUTCOMES_MOST = 1000  # waiting for Kafka at most; then sending waits too

Emit = Callable[[Sequence[Output]], Awaitable[None]]
_Written = TypeVar("_Written")


class Delivery:
    """The loop of one channel. ``clock``: microseconds since 1970; ``chance``: uniform in [0, 1)."""

    def __init__(
        self,
        store: Store,
        channel: Channel,
        config: DeliveryConfig,
        *,
        stage: str,
        emit: Emit,
        wake: asyncio.Event,
        codec: Codec,
        clock: Callable[[], int],
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._channel = channel
        self._config = config
        self._stage = stage
        self._emit = emit
        self._wake = wake
        self._codec = codec
        self._encode = codec.encoder("outcome")
        self._clock = clock
        self._chance = chance
        self._log = log(stage)
        self._rests_until = 0
        self._trouble = 0  # sends in a row of which the provider took none
        self._in_hand = 0
        self._slots = asyncio.Semaphore(config.max_connections)
        self._outcomes: asyncio.Queue[Output] = asyncio.Queue(_OUTCOMES_MOST)

    # -- the loop ----------------------------------------------------------------------------------------------------

    async def run(self, stop: Stop) -> None:
        """Send until ``stop``, then finish what is in hand. Whatever is not a lost dependency is a bug and raises."""
        async with asyncio.TaskGroup() as loops:
            aside = [loops.create_task(self._wake_on(stop)), loops.create_task(self._tell_on())]
            async with asyncio.TaskGroup() as sends:
                while not stop.requested:
                    self._wake.clear()
                    claims = await self._next()
                    self._in_hand += len(claims)
                    for claim in claims:
                        sends.create_task(self._in_turn(claim, stop)).add_done_callback(self._one_less)
                    if not claims:
                        await self._idle()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS_S):
                    await self._outcomes.join()
            for task in aside:
                task.cancel()

    async def once(self) -> int:
        """Claim what may be sent at once and see it through; return how many messages it was (0 while resting)."""
        claims = await self._claim(self._config.max_connections)
        await asyncio.gather(*(self._deliver(claim) for claim in claims))
        while not self._outcomes.empty():
            await self._emit([self._outcomes.get_nowait()])
        return len(claims)

    async def _next(self) -> list[Claim]:
        try:
            few = self._in_hand <= 2 * self._config.max_connections
            return await self._claim(_AHEAD * self._config.max_connections - self._in_hand) if few else []
        except DependencyAway as away:
            self._log.warning("waiting", extra={"fields": {"for": away.who, "why": str(away)}})
            await asyncio.sleep(_AWAY_S[0] + self._chance())
            return []

    async def _claim(self, limit: int) -> list[Claim]:
        return await self._store.claim(limit) if limit > 0 and self._clock() >= self._rests_until else []

    async def _idle(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.poll_s):
                await self._wake.wait()

    async def _wake_on(self, stop: Stop) -> None:
        await stop.wait()
        self._wake.set()

    def _one_less(self, _: asyncio.Task[None]) -> None:
        self._in_hand -= 1
        self._wake.set()

    # -- one message -------------------------------------------------------------------------------------------------

    async def _in_turn(self, claim: Claim, stop: Stop) -> None:
        """Deliver once there is a connection free; give the message back if it should not be begun any more."""
        async with self._slots:
            if stop.requested or self._clock() < self._rests_until:
                next_at = max(self._clock(), self._rests_until)
                await self._persist(lambda: self._store.given_back(claim, next_at))
            else:
                await self._deliver(claim)

    async def _deliver(self, claim: Claim) -> None:
        if claim.unsure and not self._may_repeat():
            await self._end(claim, "failed", What.DEAD, Reason.UNSURE)
        elif claim.erased:
            await self._end(claim, "skipped", What.SKIPPED, Reason.ERASED)
        elif claim.withdrawn:
            await self._end(claim, "skipped", What.SKIPPED, Reason.NO_CONSENT)
        elif self._clock() - claim.requested_at > self._config.expire_s * 1e6:
            await self._end(claim, "failed", What.DEAD, Reason.EXPIRED, claim.last_error)
        else:
            await self._send(claim)

    async def _send(self, claim: Claim) -> None:
        asked = self._codec.decode(claim.request).record
        message = Message(asked["message_id"], asked["to"], asked["sender"], asked["subject"], asked["body"])
        handed: list[bool] = []

        async def handing_over() -> None:
            if not await self._store.sending(claim):
                raise LeaseLost
            handed.append(True)

        result: Result
        try:
            async with asyncio.timeout(self._config.lease_s / 2):
                result = await self._channel.send(message, handing_over)
        except TimeoutError:
            result = Unsure(Reason.TIMEOUT) if handed else Failed(Verdict.RETRY, Reason.TIMEOUT)
        except LeaseLost:
            self._log.warning("lease lost before sending", extra={"fields": {"message_id": claim.message_id}})
            return
        except DependencyAway:  # Postgres; nothing was handed over, so whatever it has noted can be taken back
            await self._park(claim, Reason.UNAVAILABLE, _AWAY_S[1], tell=False)
            return
        await self._settle(claim, result)

    async def _settle(self, claim: Claim, result: Result) -> None:
        if isinstance(result, Sent):
            self._trouble = 0
            metrics.WAITING.labels(self._stage, self._channel.name).set(0)
            await self._end(claim, "sent", What.SENT, None, provider_id=result.provider_id)
        elif isinstance(result, Unsure) and not self._may_repeat():
            await self._end(claim, "failed", What.DEAD, Reason.UNSURE, result.reason.value)
        elif isinstance(result, Unsure):
            await self._park(claim, result.reason, self._backoff(claim.attempts + 1, self._config.backoff_max_s))
        elif result.verdict is Verdict.DEAD:
            self._trouble = 0
            await self._end(claim, "failed", What.DEAD, result.reason, result.detail)
        elif result.verdict is Verdict.RETRY:
            self._trouble = 0
            wait_s = max(result.wait_s, self._backoff(claim.attempts + 1, self._config.backoff_max_s))
            await self._park(claim, result.reason, wait_s, result.detail)
        else:
            await self._park(claim, result.reason, self._rest(result), result.detail)

    def _may_repeat(self) -> bool:
        return self._channel.dedupes or self._config.when_unsure == "again"

    def _rest(self, failed: Failed) -> float:
        """Claim nothing for a while, and return for how many seconds."""
        self._trouble += 1
        wait_s = max(failed.wait_s, self._backoff(self._trouble, _REST_MAX_S))
        self._rests_until = max(self._rests_until, self._clock() + int(wait_s * 1e6))
        metrics.WAITING.labels(self._stage, self._channel.name).set(1)
        fields = {"reason": failed.reason.value, "seconds": round(wait_s, 1), "detail": failed.detail}
        self._log.warning("resting", extra={"fields": fields})
        return wait_s

    def _backoff(self, attempt: int, most_s: float) -> float:
        wait: float = min(most_s, self._config.backoff_s * 2 ** min(attempt - 1, 30))
        return wait * (0.5 + self._chance())

    # -- writing and telling -----------------------------------------------------------------------------------------

    async def _end(
        self, claim: Claim, state: str, what: What, reason: Reason | None, detail: str = "", provider_id: str = ""
    ) -> None:
        if await self._persist(lambda: self._store.finished(claim, state, reason, provider_id)):
            await self._tell(claim, what, reason, detail)
        else:
            fields = {"message_id": claim.message_id, "state": state}
            self._log.error("ended after its lease; another worker has it", extra={"fields": fields})

    async def _park(self, claim: Claim, reason: Reason, wait_s: float, detail: str = "", *, tell: bool = True) -> None:
        next_at = self._clock() + int(wait_s * 1e6)
        ours = await self._persist(lambda: self._store.parked(claim, reason, next_at))
        if ours and tell and claim.last_error != reason.value:  # said once a reason, not once an attempt
            await self._tell(claim, What.PARKED, reason, detail)

    async def _tell(self, claim: Claim, what: What, reason: Reason | None, detail: str) -> None:
        metrics.OUTCOMES.labels(self._stage, what.value, reason or "").inc()
        record = {
            "at": self._clock(),
            "stage": self._stage,
            "what": what.value,
            "reason": reason.value if reason else "",
            "tenant": claim.tenant,
            "event_id": claim.event_id,
            "lead_id": claim.lead_id,
            "topic": claim.topic,
            "partition": claim.partition,
            "offset": claim.offset,
            "detail": f"{claim.campaign} {detail}".strip(),
        }
        await self._outcomes.put(Output(OUTCOMES, claim.lead_id.encode(), self._encode(record)))

    async def _tell_on(self) -> None:
        """Produce outcomes next to the sending, as many at once as there are: no connection waits for Kafka."""
        while True:
            outputs = [await self._outcomes.get()]
            while not self._outcomes.empty():
                outputs.append(self._outcomes.get_nowait())
            await self._persist(lambda batch=outputs: self._emit(batch))  # type: ignore[misc]
            for _ in outputs:
                self._outcomes.task_done()

    async def _persist(self, step: Callable[[], Awaitable[_Written]]) -> _Written:
        """Await ``step`` again and again until no dependency is away: what the provider did must not be forgotten."""
        wait = _AWAY_S[0]
        while True:
            try:
                return await step()
            except DependencyAway as away:
                self._log.warning("waiting", extra={"fields": {"for": away.who, "why": str(away)}})
                await asyncio.sleep(wait * (0.5 + self._chance()))
                wait = min(wait * 2, _AWAY_S[1])
