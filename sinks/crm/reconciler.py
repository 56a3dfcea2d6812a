"""What CRM sync does with a lease: make the CRM have the newest snapshot of every lead in it.

Guarantees, beside those of the engine (:mod:`infra.postgres.leased`):

- What is sent is the canonical record as it is at the time of sending, never a message's content: a hundred edits
  while a lead waits cost one call, and an older version never follows a newer one.
- A lead is in at most one call at a time, over all workers: calls are given up after half of the lease, whether or not
  the CRM answered. (Hence the clocks of workers may differ by up to half of the lease.)
- A lead that the CRM rejects is parked until a newer version is wanted.
- Leads that were merged or deleted vanish from the CRM *before* their survivors are written: the survivor may carry the
  loser's e-mail address, which a CRM may keep unique.

Crash: calls are repeated at most; they are keyed by lead. (stage, lead_id, version) identifies an outcome.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from infra.errors import Verdict
from infra.outcomes import Reason, What
from infra.postgres.leased_pause import Pause
from infra.postgres.leased_rows import NEVER, Done, Lease, Parked, Released
from infra.runtime import log
from sinks.crm import Connector, Gone, Snapshot, SyncFailed, SyncResult
from sinks.crm.sync_table import CanonicalLead, CrmSyncTable, Retired, SyncRow, Written

_ASIDE_S = 0.1  # a survivor waits this long for a loser that another worker has leased

_Item = TypeVar("_Item")
_Settled = list[tuple[SyncRow, Done | Parked | Released]]


@dataclass(slots=True)
class _Plan:
    """What to do with a lease, in this order: retire ``gone``, then upsert ``live``; ``aside`` waits.

    ``behind``: the record has a lower version than was announced.
    """

    gone: list[tuple[SyncRow, Gone]] = field(default_factory=list)
    live: list[tuple[SyncRow, Snapshot]] = field(default_factory=list)
    aside: list[SyncRow] = field(default_factory=list)
    behind: list[SyncRow] = field(default_factory=list)


class Reconciler:
    """The sync of one destination; :meth:`handle` is the engine's ``handle``."""

    def __init__(self, table: CrmSyncTable, connector: Connector, pause: Pause, stage: str) -> None:
        self._table = table
        self._crm = connector
        self._pause = pause
        self._log = log(stage)

    async def handle(self, lease: Lease[SyncRow]) -> _Settled:
        """Retire, then upsert. Losers of the leads in ``lease`` are claimed under it and added to its rows."""
        plan = await self._plan(lease)
        settled: _Settled = [(row, Parked(Reason.UNAVAILABLE)) for row in plan.behind]
        settled += [(row, Released(_ASIDE_S)) for row in plan.aside]
        settled += await self._retire(plan, lease.deadline)
        if self._pause.active:
            return settled + [(row, Released()) for row, _ in plan.live]
        return settled + await self._upsert(plan, lease.deadline)

    async def _plan(self, lease: Lease[SyncRow]) -> _Plan:
        leads = await self._table.leads([row.key for row in lease.rows])
        plan = _Plan()
        for row in lease.rows:
            lead = leads.get(row.key)
            if lead is None:
                plan.gone.append((row, Gone(row.key, row.remote_id)))
            elif lead.survivor_id:
                plan.gone.append((row, _gone(row, lead.survivor_id, lead.survivor_remote_id)))
            elif lead.version < row.wanted:
                self._log.error("the record is behind what was announced", extra={"fields": {"lead_id": row.key}})
                plan.behind.append(row)
            else:
                plan.live.append((row, _snapshot(row, lead)))
        await self._add_losers(lease, plan)
        return plan

    async def _add_losers(self, lease: Lease[SyncRow], plan: _Plan) -> None:
        if not plan.live:
            return
        remote_ids = {row.key: row.remote_id for row, _ in plan.live}
        held = set()
        for loser in await self._table.claim_losers(lease, list(remote_ids)):
            if loser.row is None:
                held.add(loser.survivor_id)
            else:
                lease.rows.append(loser.row)
                plan.gone.append((loser.row, _gone(loser.row, loser.survivor_id, remote_ids[loser.survivor_id])))
        plan.aside = [row for row, _ in plan.live if row.key in held]
        plan.live = [(row, snapshot) for row, snapshot in plan.live if row.key not in held]

    async def _retire(self, plan: _Plan, deadline: float) -> _Settled:
        settled: _Settled = []
        for start in range(0, len(plan.gone), self._crm.batch_max):
            part = plan.gone[start : start + self._crm.batch_max]
            results = await self._call(self._crm.retire, [gone for _, gone in part], deadline)
            for (row, gone), result in zip(part, results, strict=True):
                if isinstance(result, SyncFailed):
                    settled.append((row, _failure(result, row.wanted)))
                else:
                    adopted = {gone.survivor_id: result.remote_id} if gone.survivor_id and result.remote_id else {}
                    settled.append((row, Done(What.SYNCED, detail="retired", value=Retired(adopted))))
        return settled

    async def _upsert(self, plan: _Plan, deadline: float) -> _Settled:
        if not plan.live:
            return []
        results = await self._call(self._crm.upsert, [snapshot for _, snapshot in plan.live], deadline)
        return [
            (row, _failure(result, snapshot.version))
            if isinstance(result, SyncFailed)
            else (row, Done(What.SYNCED, version=snapshot.version, value=Written(result.remote_id)))
            for (row, snapshot), result in zip(plan.live, results, strict=True)
        ]

    async def _call(
        self,
        call: Callable[[Sequence[_Item]], Awaitable[Sequence[SyncResult]]],
        items: Sequence[_Item],
        deadline: float,
    ) -> Sequence[SyncResult]:
        """Call the connector, give up at ``deadline``, and pause where the CRM asks for it or fails as a whole."""
        results: Sequence[SyncResult]
        try:
            async with asyncio.timeout_at(deadline):
                results = await call(items)
        except TimeoutError:
            results = [SyncFailed(Verdict.RETRY, Reason.TIMEOUT)] * len(items)
        failures = [r for r in results if isinstance(r, SyncFailed)]
        pauses = [f for f in failures if f.verdict in (Verdict.PAUSE, Verdict.REFRESH)]
        if pauses:
            longest = max(pauses, key=lambda f: f.wait_s)
            self._pause.begin(longest.reason, wait_s=longest.wait_s, detail=longest.detail)
        elif len(failures) == len(items) and all(f.reason in (Reason.UNAVAILABLE, Reason.TIMEOUT) for f in failures):
            self._pause.begin(failures[0].reason, detail=failures[0].detail)
        else:
            self._pause.answered()
        return results


def _failure(failed: SyncFailed, version: int) -> Parked | Released:
    if failed.verdict in (Verdict.PAUSE, Verdict.REFRESH):
        return Released()
    until = NEVER if failed.verdict is Verdict.DEAD else None
    return Parked(failed.reason, failed.detail, until=until, version=version)


def _gone(row: SyncRow, survivor_id: str, survivor_remote_id: str) -> Gone:
    return Gone(row.key, row.remote_id, survivor_id, survivor_remote_id)


def _snapshot(row: SyncRow, lead: CanonicalLead) -> Snapshot:
    return Snapshot(row.key, row.tenant, lead.version, lead.attributes, row.remote_id, lead.erased)
