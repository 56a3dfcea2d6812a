"""Makes a CRM match the canonical record: the engine calls :meth:`Reconciler.handle` with each lease.

Guarantees, in addition to those of the engine (:mod:`infra.postgres.leased`):

- A call sends the canonical record as it is then, never the content of a message. So many edits of a waiting lead cost
  one call, and an older version is never sent after a newer one.
- A lead is in at most one call at a time, across all workers: a call is cancelled half a lease after its rows were
  claimed. So the clocks of two workers may differ by up to half a lease.
- A version that changes nothing that the CRM gets, such as a page view, costs no call and emits no outcome.
- A property that was sent before and has no value any more is cleared. Others that have no value are not sent.
- A call's snapshots have at most ``max_bytes`` bytes as JSON, or one lead more. The rows above that are released.
- A lead that the CRM rejects is parked until a newer version is wanted. So is a lead in conflict with the record of
  another lead, unless that record is going to change; it is also due when that other lead is written or retired.
- The record of an erased lead without later values is deleted for good (``erasure`` of the CRM's settings).
- The records of two merged leads are merged after the connector's ``merge_delay_s``, and not if the merge of the leads
  is undone by then. Until then both exist. A survivor that takes over the merged lead's e-mail address does not wait.
- Records of merged or deleted leads are retired *before* their survivors are written: the survivor may have the merged
  lead's e-mail address, and a CRM may require it to be unique.

Crash: calls may be repeated. They are keyed by lead, so a repeated call has no further effect. An outcome is identified
by (stage, lead_id, version).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from infra.clock import Clock, now_us
from infra.errors import DependencyUnavailable, Verdict
from infra.outcomes import Reason, What
from infra.postgres.leased_pause import Pause
from infra.postgres.leased_rows import NEVER, Done, Lease, Parked, Released
from infra.runtime import log
from sinks.crm import Connector, RetiredLead, Snapshot, SyncFailed, SyncResult
from sinks.crm.conflicts import conflict, uuids
from sinks.crm.fingerprints import Fingerprint, fingerprint
from sinks.crm.sync_table import CanonicalLead, CrmSyncTable, Owner, RecordErased, RecordRetired, RecordWritten, SyncRow

PURPOSE = "crm"  # of the consent without which a lead is not written; its record stays as it is
_DEFER_S = 0.1  # delay of a survivor whose merged lead is leased by another worker
_ERASE_MAX = (
    15  # leads of one call of ``erase``: one API call each, so that they end before the lease at any rate limit
)
_MAX_BYTES = 4 << 20  # of the snapshots of a call, as JSON

_Item = TypeVar("_Item")
_Settled = list[tuple[SyncRow, Done | Parked | Released]]


@dataclass(slots=True)
class _Plan:
    """The rows of a lease by the action that they need, in the order of the actions.

    ``unchanged``: what the CRM gets is what it was sent last. ``deferred``: survivors of a lead that another worker has
    leased. ``waiting``: merged leads whose records are to be merged later, with the seconds until then.
    ``postponed``: their snapshots are above the limit in bytes. ``outdated``: the canonical record has a lower version
    than the wanted one, which is a defect. ``foreign``: the lead is another tenant's than the request claims.
    """

    erase: list[tuple[SyncRow, RetiredLead, int]] = field(default_factory=list)  # with the lead's version
    retire: list[tuple[SyncRow, RetiredLead]] = field(default_factory=list)
    upsert: list[tuple[SyncRow, Snapshot]] = field(default_factory=list)
    unchanged: list[tuple[SyncRow, Snapshot]] = field(default_factory=list)
    withdrawn: list[tuple[SyncRow, int]] = field(default_factory=list)  # with the lead's version
    deferred: list[SyncRow] = field(default_factory=list)
    waiting: list[tuple[SyncRow, float]] = field(default_factory=list)
    postponed: list[SyncRow] = field(default_factory=list)
    outdated: list[SyncRow] = field(default_factory=list)
    foreign: list[SyncRow] = field(default_factory=list)


class Reconciler:
    """Syncs the leads of one destination. ``max_bytes``: of the snapshots of one call."""

    def __init__(
        self,
        table: CrmSyncTable,
        connector: Connector,
        pause: Pause,
        stage: str,
        *,
        max_bytes: int = _MAX_BYTES,
        clock: Clock = now_us,
    ) -> None:
        self._table = table
        self._max_bytes = max_bytes
        self._clock = clock
        self._crm = connector
        self._pause = pause
        self._log = log(stage)

    async def handle(self, lease: Lease[SyncRow]) -> _Settled:
        """Retire, then upsert the leads of ``lease``; return the result of each row.

        Leads that were merged into a lead of ``lease`` are claimed under the same lease and added to its rows.
        """
        plan = await self._plan(lease)
        settled: _Settled = [(row, Parked(Reason.UNAVAILABLE)) for row in plan.outdated]
        settled += [(row, Parked(Reason.REJECTED, "tenant", until=NEVER)) for row in plan.foreign]
        settled += [(row, Released(_DEFER_S)) for row in plan.deferred]
        settled += [(row, Released()) for row in plan.postponed]
        settled += [(row, Released(wait_s)) for row, wait_s in plan.waiting]
        settled += [(row, _unchanged(row, snapshot)) for row, snapshot in plan.unchanged]
        settled += [(row, _withdrawn(row, version)) for row, version in plan.withdrawn]
        settled += await self._erase(plan, lease.deadline)
        settled += await self._retire(plan, lease.deadline)
        if self._pause.active:
            return settled + [(row, Released()) for row, _ in plan.upsert]
        return settled + await self._upsert(plan, lease.deadline)

    async def _plan(self, lease: Lease[SyncRow]) -> _Plan:
        leads = await self._table.leads([row.key for row in lease.rows], self._max_bytes)
        plan = _Plan()
        for row in lease.rows:
            lead = leads.get(row.key)
            if lead is None:
                plan.retire.append((row, RetiredLead(row.key, row.remote_id)))
            elif lead.tenant not in ("", row.tenant):
                plan.foreign.append(row)
            elif self._crm.erases and _is_erased(lead) and lead.version >= row.wanted:
                plan.erase.append((row, RetiredLead(row.key, row.remote_id, lead.survivor_id), lead.version))
            elif lead.survivor_id and (wait_s := self._merge_wait_s(row, lead)) > 0:
                plan.waiting.append((row, wait_s))
            elif lead.survivor_id:
                plan.retire.append((row, _merged(row, lead.survivor_id, lead.survivor_remote_id)))
            elif lead.version < row.wanted:
                fields = {"lead_id": row.key, "version": lead.version, "wanted": row.wanted}
                self._log.error("the canonical record is older than the wanted version", extra={"fields": fields})
                plan.outdated.append(row)
            elif lead.attributes is None:
                plan.postponed.append(row)
            elif lead.attributes.get("consent", {}).get(PURPOSE) == "withdrawn":
                plan.withdrawn.append((row, lead.version))
            else:
                plan.upsert.append((row, _snapshot(row, lead, lead.attributes)))
        await self._add_losers(lease, plan)
        self._compare(plan)
        return plan

    def _merge_wait_s(self, row: SyncRow, lead: CanonicalLead) -> float:
        if lead.merged_at is None or not row.remote_id or not lead.survivor_remote_id:
            return 0  # there are no two records
        return (lead.merged_at - self._clock()) / 1e6 + self._crm.merge_delay_s

    async def _add_losers(self, lease: Lease[SyncRow], plan: _Plan) -> None:
        if not plan.upsert:
            return
        remote_ids = {row.key: row.remote_id for row, _ in plan.upsert}
        deferred = set()
        losers = await self._table.claim_losers(lease, list(remote_ids))
        leads = await self._table.leads([loser.row.key for loser in losers if loser.row], 0) if losers else {}
        for loser in losers:
            if loser.row is None:
                deferred.add(loser.survivor_id)
                continue
            lease.rows.append(loser.row)
            lead = leads.get(loser.row.key)
            if lead is not None and (wait_s := self._merge_wait_s(loser.row, lead)) > 0:
                plan.waiting.append((loser.row, wait_s))
            else:
                plan.retire.append((loser.row, _merged(loser.row, loser.survivor_id, remote_ids[loser.survivor_id])))
        plan.deferred = [row for row, _ in plan.upsert if row.key in deferred]
        plan.upsert = [(row, snapshot) for row, snapshot in plan.upsert if row.key not in deferred]

    def _compare(self, plan: _Plan) -> None:
        """Keep in ``plan.upsert`` what differs from what was sent, with the properties to clear."""
        merging = {lead.survivor_id for _, lead in plan.retire}  # a merge changes the survivor's record
        upserts, plan.upsert = plan.upsert, []
        for row, snapshot in upserts:
            sent = row.sent or {}
            now = self._fingerprint(snapshot)
            if row.sent == now and not row.unsure and row.key not in merging:
                plan.unchanged.append((row, snapshot))
            else:
                plan.upsert.append((row, replace(snapshot, cleared=sent.keys() - now.keys())))

    def _fingerprint(self, snapshot: Snapshot) -> Fingerprint:
        return fingerprint(snapshot.lead_id, self._crm.properties(snapshot))

    async def _erase(self, plan: _Plan, deadline: float) -> _Settled:
        if not plan.erase:
            return []
        part, later = plan.erase[:_ERASE_MAX], plan.erase[_ERASE_MAX:]
        settled: _Settled = [(row, Released()) for row, _, _ in later]
        results = await self._call(self._crm.erase, [lead for _, lead, _ in part], deadline)
        for (row, lead, version), result in zip(part, results, strict=True):
            if isinstance(result, SyncFailed):
                settled.append((row, _failure(result, version)))
            else:
                detail = "record deleted" if row.remote_id else "no record known"
                erased = RecordErased(detail, merged=bool(lead.survivor_id))
                settled.append((row, Done(What.SYNCED, detail="erased", version=version, value=erased)))
        return settled

    async def _retire(self, plan: _Plan, deadline: float) -> _Settled:
        settled: _Settled = []
        for start in range(0, len(plan.retire), self._crm.batch_max):
            part = plan.retire[start : start + self._crm.batch_max]
            results = await self._call(self._crm.retire, [lead for _, lead in part], deadline)
            for (row, lead), result in zip(part, results, strict=True):
                if isinstance(result, SyncFailed):
                    settled.append((row, _failure(result, row.wanted)))
                else:
                    survivor = {lead.survivor_id: result.remote_id} if lead.survivor_id and result.remote_id else {}
                    settled.append((row, Done(What.SYNCED, detail="retired", value=RecordRetired(survivor))))
        return settled

    async def _upsert(self, plan: _Plan, deadline: float) -> _Settled:
        if not plan.upsert:
            return []
        results = await self._call(self._crm.upsert, [snapshot for _, snapshot in plan.upsert], deadline)
        owners = await self._owners(results)
        settled: _Settled = []
        for (row, snapshot), result in zip(plan.upsert, results, strict=True):
            if not isinstance(result, SyncFailed):
                written = RecordWritten(result.remote_id, self._fingerprint(snapshot))
                settled.append((row, Done(What.SYNCED, version=snapshot.version, value=written)))
            elif result.owner_id is not None and owners is not None:
                settled.append((row, conflict(row, snapshot.version, result, owners)))
            else:
                settled.append((row, _failure(result, snapshot.version)))
        return settled

    async def _owners(self, results: Sequence[SyncResult]) -> Mapping[str, Owner] | None:
        """Return the leads that ``results`` conflict with, or None if that is unknown now.

        An unavailable Postgres must not be raised here: it would discard the results of the call.
        """
        owner_ids = uuids(r.owner_id for r in results if isinstance(r, SyncFailed) and r.owner_id)
        if not owner_ids:
            return {}
        try:
            return await self._table.owners(owner_ids)
        except DependencyUnavailable:
            return None

    async def _call(
        self,
        call: Callable[[Sequence[_Item]], Awaitable[Sequence[SyncResult]]],
        items: Sequence[_Item],
        deadline: float,
    ) -> Sequence[SyncResult]:
        """Call the connector, cancel the call at ``deadline``, and pause if the CRM requests it or is unavailable."""
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


def _is_erased(lead: CanonicalLead) -> bool:
    """Return whether nothing is left of a lead: it has no later values, or is a part of a lead that was erased."""
    return lead.erased and (bool(lead.survivor_id) or lead.attributes == {})


def _unchanged(row: SyncRow, snapshot: Snapshot) -> Done:
    return Done(None, version=snapshot.version, value=RecordWritten(row.remote_id, row.sent))


def _withdrawn(row: SyncRow, version: int) -> Done:
    written = RecordWritten(row.remote_id, row.sent)
    return Done(What.SKIPPED, Reason.NO_CONSENT, f"consent {PURPOSE} is withdrawn", version=version, value=written)


def _merged(row: SyncRow, survivor_id: str, survivor_remote_id: str) -> RetiredLead:
    return RetiredLead(row.key, row.remote_id, survivor_id, survivor_remote_id)


def _snapshot(row: SyncRow, lead: CanonicalLead, attributes: Mapping[str, Any]) -> Snapshot:
    return Snapshot(row.key, row.tenant, lead.version, attributes, row.remote_id, lead.erased)
