"""Make a CRM have the newest snapshot of every lead that is wanted there: level-triggered, resumable at any point.

Guarantees:

- What is sent is the canonical record as it is at the time of sending, never a message's content: a hundred edits
  while a lead waits cost one call, and an older version never follows a newer one.
- A lead is in at most one call at a time, over all workers: it is claimed by a lease, and a batch is given up after
  half of the lease, whether or not the CRM answered. (Hence the clocks of workers may differ by up to half a lease.)
- A failing lead is parked by its key, alone, with backoff and jitter. One that the CRM will never take is parked until
  a newer version is wanted. A destination that wants no calls (rate limit, quota, token, set-up) stops all of this sink
  and nothing else, and no lead pays for it with an attempt.
- Leads that were merged or deleted vanish from the CRM *before* their survivors are written: the survivor may carry the
  loser's e-mail address, which a CRM may keep unique.
- A crash anywhere repeats calls at most; they are keyed by lead. Outcomes follow the write to ``crm_sync``, at least
  once unless the process dies in between; (stage, lead_id, version) identifies one.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from infra import metrics
from infra.errors import DependencyAway, Verdict
from infra.kafka.producer import Output
from infra.outcomes import Reason, What
from infra.runtime import Stop, log
from schemas.codec import Codec
from sinks.crm import Connector, Done, Failed, Gone, Result, Snapshot, SyncConfig
from sinks.crm.store import NEVER, Claim, Lead, Row, Store

OUTCOMES = "leads.outcomes"
_ASIDE_S = 0.1  # a survivor waits this long for its loser that another worker has in hand
_AWAY_S = (0.1, 5.0)
_LAST_WORDS_S = 5.0  # for outcomes that are not delivered when asked to stop
_OUTCOME_BATCHES = 1000  # waiting for Kafka at most; then syncing waits too

Emit = Callable[[Sequence[Output]], Awaitable[None]]
_Item = TypeVar("_Item")


@dataclass(slots=True)
class _Plan:
    """What is to be done about a claim, in this order: retire ``gone``, then upsert ``live``; ``aside`` waits."""

    gone: list[tuple[Row, Gone]] = field(default_factory=list)
    live: list[tuple[Row, Snapshot]] = field(default_factory=list)
    aside: list[str] = field(default_factory=list)
    behind: list[Row] = field(default_factory=list)


class Reconciler:
    """The sync loop of one destination. ``clock``: microseconds since 1970; ``chance``: uniform in [0, 1)."""

    def __init__(
        self,
        store: Store,
        connector: Connector,
        config: SyncConfig,
        *,
        stage: str,
        emit: Emit,
        wake: asyncio.Event,
        codec: Codec,
        clock: Callable[[], int],
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._crm = connector
        self._config = config
        self._stage = stage
        self._emit = emit
        self._wake = wake
        self._clock = clock
        self._chance = chance
        self._encode = codec.encoder("outcome")
        self._log = log(stage)
        self._paused_until = 0
        self._trouble = 0  # batches in a row of which nothing came through
        self._outcomes: asyncio.Queue[list[Output]] = asyncio.Queue(_OUTCOME_BATCHES)

    # -- the loop ----------------------------------------------------------------------------------------------------

    async def run(self, stop: Stop) -> None:
        """Sync until ``stop``, then finish what is in hand. Whatever is not a lost dependency is a bug and raises."""
        slots = asyncio.Semaphore(self._config.in_flight)
        teller = asyncio.create_task(self._tell())
        stopping = asyncio.create_task(self._wake_on(stop))
        try:
            async with asyncio.TaskGroup() as batches:
                while not stop.requested:
                    self._wake.clear()
                    claim = await self._next(slots)
                    if claim is None:
                        await self._idle()
                        continue
                    batch = batches.create_task(self._handle(claim))
                    batch.add_done_callback(lambda _: slots.release())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS_S):
                    await self._outcomes.join()
        finally:
            teller.cancel()
            stopping.cancel()

    async def once(self) -> int:
        """Claim one batch, see it through and tell its outcomes; return how many leads it was (0 while paused)."""
        claim = await self._claim()
        if claim is None:
            return 0
        await self._sync(claim)
        while not self._outcomes.empty():
            await self._emit(self._outcomes.get_nowait())
        return len(claim.rows)

    async def _next(self, slots: asyncio.Semaphore) -> Claim | None:
        """Claim a batch once there is a slot for it and the rate limit allows it: till then more leads gather."""
        await slots.acquire()
        claim = None
        try:
            await self._crm.ready()
            claim = await self._claim()
        except DependencyAway as away:
            self._log.warning("waiting", extra={"fields": {"for": away.who, "why": str(away)}})
            await asyncio.sleep(_AWAY_S[0] + self._chance())
        finally:
            if claim is None:
                slots.release()
        return claim

    async def _claim(self) -> Claim | None:
        if self._clock() < self._paused_until:
            return None
        claim = await self._store.claim(self._crm.batch_max)
        return claim if claim.rows else None

    async def _idle(self) -> None:
        if self._clock() < self._paused_until:  # news does not end a pause
            await asyncio.sleep(min(self._config.poll_s, (self._paused_until - self._clock()) / 1e6))
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.poll_s):
                await self._wake.wait()

    async def _wake_on(self, stop: Stop) -> None:
        await stop.wait()
        self._wake.set()

    async def _handle(self, claim: Claim) -> None:
        try:
            await self._sync(claim)
        except DependencyAway as away:
            # The rows come free when the lease runs out; what was sent is sent once more then.
            self._log.warning("lost a batch's result", extra={"fields": {"why": str(away), "leads": len(claim.rows)}})
        self._wake.set()  # there may be more

    # -- one batch ---------------------------------------------------------------------------------------------------

    async def _sync(self, claim: Claim) -> None:
        deadline = asyncio.get_running_loop().time() + self._config.lease_s / 2
        plan = await self._plan(claim)
        for row in plan.behind:
            self._log.error("the record is behind what was announced", extra={"fields": {"lead_id": row.lead_id}})
        await self._park(claim, [(row, 0, Failed(Verdict.RETRY, Reason.UNAVAILABLE)) for row in plan.behind])
        await self._retire(claim, plan, deadline)
        if self._clock() < self._paused_until:
            self._set_aside(plan, {row.lead_id for row, _ in plan.live})
        await self._upsert(claim, plan, deadline)
        await self._store.release(claim, plan.aside, self._clock() + int(_ASIDE_S * 1e6))

    async def _plan(self, claim: Claim) -> _Plan:
        leads = await self._store.leads([row.lead_id for row in claim.rows])
        plan = _Plan()
        for row in claim.rows:
            lead = leads.get(row.lead_id)
            if lead is None:
                plan.gone.append((row, Gone(row.lead_id, row.remote_id)))
            elif lead.survivor_id:
                plan.gone.append((row, _gone(row, lead.survivor_id, lead.survivor_remote_id)))
            elif lead.version < row.wanted:
                plan.behind.append(row)
            else:
                plan.live.append((row, _snapshot(row, lead)))
        await self._add_losers(claim, plan)
        return plan

    async def _add_losers(self, claim: Claim, plan: _Plan) -> None:
        if not plan.live:
            return
        remote_ids = {row.lead_id: row.remote_id for row, _ in plan.live}
        held = set()
        for loser in await self._store.claim_losers(claim, list(remote_ids)):
            if loser.row is None:
                held.add(loser.survivor_id)
            else:
                plan.gone.append((loser.row, _gone(loser.row, loser.survivor_id, remote_ids[loser.survivor_id])))
        self._set_aside(plan, held)

    def _set_aside(self, plan: _Plan, lead_ids: set[str]) -> None:
        plan.aside += [row.lead_id for row, _ in plan.live if row.lead_id in lead_ids]
        plan.live = [(row, snapshot) for row, snapshot in plan.live if row.lead_id not in lead_ids]

    async def _retire(self, claim: Claim, plan: _Plan, deadline: float) -> None:
        for start in range(0, len(plan.gone), self._crm.batch_max):
            part = plan.gone[start : start + self._crm.batch_max]
            gone = [each for _, each in part]
            results = await self._call(self._crm.retire, gone, deadline)
            done = [(row, g, r) for (row, g), r in zip(part, results, strict=True) if isinstance(r, Done)]
            adopted = {g.survivor_id: r.remote_id for _, g, r in done if g.survivor_id and r.remote_id}
            await self._store.retired(claim, [(row.lead_id, row.wanted) for row, _, _ in done], adopted)
            self._say([(row, row.wanted, What.SYNCED, "", "retired") for row, _, _ in done])
            failed = [(row, 0, r) for (row, _), r in zip(part, results, strict=True) if isinstance(r, Failed)]
            await self._park(claim, failed)

    async def _upsert(self, claim: Claim, plan: _Plan, deadline: float) -> None:
        if not plan.live:
            return
        snapshots = [snapshot for _, snapshot in plan.live]
        results = await self._call(self._crm.upsert, snapshots, deadline)
        pairs = list(zip(plan.live, results, strict=True))
        done = [(row, s.version, r.remote_id) for (row, s), r in pairs if isinstance(r, Done)]
        if done:
            await self._store.synced(claim, [(row.lead_id, version, remote) for row, version, remote in done])
            self._say([(row, version, What.SYNCED, "", "") for row, version, _ in done])
        await self._park(claim, [(row, s.version, r) for (row, s), r in pairs if isinstance(r, Failed)])

    async def _call(
        self, call: Callable[[Sequence[_Item]], Awaitable[Sequence[Result]]], items: Sequence[_Item], deadline: float
    ) -> Sequence[Result]:
        """Call the connector, give up at ``deadline``, and let the whole sink rest when the CRM wants that."""
        count = len(items)
        results: Sequence[Result]
        try:
            async with asyncio.timeout_at(deadline):
                results = await call(items)
        except TimeoutError:
            results = [Failed(Verdict.RETRY, Reason.TIMEOUT)] * count
        failures = [r for r in results if isinstance(r, Failed)]
        pauses = [f for f in failures if f.verdict in (Verdict.PAUSE, Verdict.REFRESH)]
        in_trouble = len(failures) == count and all(f.reason in (Reason.UNAVAILABLE, Reason.TIMEOUT) for f in failures)
        self._trouble = self._trouble + 1 if in_trouble else 0
        if pauses:
            worst = max(pauses, key=lambda f: f.wait_s)
            self._pause(max(worst.wait_s, self._config.backoff_s), worst.reason, worst.detail)
        elif in_trouble:
            self._pause(self._backoff(self._trouble, _AWAY_S[1]), failures[0].reason, failures[0].detail)
        elif self._clock() >= self._paused_until:
            metrics.WAITING.labels(self._stage, self._crm.name).set(0)
        return results

    def _pause(self, wait_s: float, reason: Reason, detail: str) -> None:
        until = self._clock() + int(wait_s * 1e6)
        if until <= self._paused_until:
            return
        self._paused_until = until
        metrics.WAITING.labels(self._stage, self._crm.name).set(1)
        fields = {"reason": reason.value, "seconds": round(wait_s, 1), "detail": detail}
        self._log.warning("paused", extra={"fields": fields})

    # -- parking and telling -----------------------------------------------------------------------------------------

    async def _park(self, claim: Claim, failed: Sequence[tuple[Row, int, Failed]]) -> None:
        kept = [row.lead_id for row, _, f in failed if f.verdict in (Verdict.PAUSE, Verdict.REFRESH)]
        await self._store.release(claim, kept)
        alone = [(row, version, f) for row, version, f in failed if f.verdict in (Verdict.RETRY, Verdict.DEAD)]
        if not alone:
            return
        await self._store.parked(
            claim, [(r.lead_id, version, f.reason, self._again_at(r, f)) for r, version, f in alone]
        )
        # Said once a reason, not once an attempt.
        news = [(row, version, f) for row, version, f in alone if row.last_error != f.reason.value]
        self._say([(row, version or row.wanted, What.PARKED, f.reason.value, f.detail) for row, version, f in news])

    def _again_at(self, row: Row, failed: Failed) -> int:
        if failed.verdict is Verdict.DEAD:
            return NEVER
        return self._clock() + int(self._backoff(row.attempts + 1, self._config.backoff_max_s) * 1e6)

    def _backoff(self, attempt: int, most_s: float) -> float:
        exponent = min(attempt - 1, 30)
        wait: float = min(most_s, self._config.backoff_s * 2**exponent)
        return wait * (0.5 + self._chance())

    def _say(self, news: Sequence[tuple[Row, int, What, str, str]]) -> None:
        if not news:
            return
        at = self._clock()
        outputs = []
        for row, version, what, reason, detail in news:
            metrics.OUTCOMES.labels(self._stage, what.value, reason).inc()
            record = {"at": at, "stage": self._stage, "what": what.value, "reason": reason, "tenant": row.tenant}
            record |= {"lead_id": row.lead_id, "version": version, "detail": detail}
            outputs.append(Output(OUTCOMES, row.lead_id.encode(), self._encode(record)))
        try:
            self._outcomes.put_nowait(outputs)
        except asyncio.QueueFull:
            # Kafka has been away for a thousand batches, so nothing new is wanted either; the sync itself is written.
            self._log.error("outcomes dropped", extra={"fields": {"count": len(outputs)}})

    async def _tell(self) -> None:
        wait = _AWAY_S[0]
        while True:
            outputs = await self._outcomes.get()
            while True:
                try:
                    await self._emit(outputs)
                    self._outcomes.task_done()
                    wait = _AWAY_S[0]
                    break
                except DependencyAway:
                    await asyncio.sleep(wait * (0.5 + self._chance()))
                    wait = min(wait * 2, _AWAY_S[1])


def _gone(row: Row, survivor_id: str, survivor_remote_id: str) -> Gone:
    return Gone(row.lead_id, row.remote_id, survivor_id, survivor_remote_id)


def _snapshot(row: Row, lead: Lead) -> Snapshot:
    return Snapshot(row.lead_id, row.tenant, lead.version, lead.attributes, row.remote_id, lead.erased)
