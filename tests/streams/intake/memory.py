"""An in-memory replacement for intake's store, for tests of decisions and of several transactions."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from streams.intake.decision import Decision, Erasure, LeadRow, Merge, PastChange
from streams.intake.dedupe import Receipt
from streams.intake.echo import PastValues
from streams.intake.event import LEAD, MERGE, Event, Identity
from streams.intake.identity import Holder, Refused
from streams.intake.identity_policy import DEFAULT
from streams.intake.merge import LOST, REPORTING, TOUCHING, Touch
from streams.intake.provenance import stored_snapshot
from streams.intake.split import PastMerge
from streams.intake.split_store import SplitTables
from streams.intake.store import Store, Transaction
from streams.intake.suppress import Suppression
from streams.intake.touches import Outermost


class Said(NamedTuple):
    version: int
    at: int


@dataclass
class StoredMerge:
    merge: Merge
    identities: list[Identity]
    number: int
    undone: bool = False


@dataclass
class Tables:
    said: dict[str, list[Said]] = field(default_factory=dict)
    receipts: dict[str, Receipt] = field(default_factory=dict)
    identities: dict[Identity, str] = field(default_factory=dict)
    leads: dict[str, LeadRow] = field(default_factory=dict)
    history: dict[tuple[str, int], PastChange] = field(default_factory=dict)
    touches: dict[str, list[Touch]] = field(default_factory=dict)
    past: dict[str, list[PastValues]] = field(default_factory=dict)
    refused: dict[tuple[str, str, str], Refused] = field(default_factory=dict)
    suppressions: dict[Identity, Suppression] = field(default_factory=dict)
    merges: list[StoredMerge] = field(default_factory=list)
    apart: set[tuple[str, str]] = field(default_factory=set)
    own_touches: dict[str, list[Touch]] = field(default_factory=dict)

    def owner(self, lead_id: str) -> str:
        """Return the lead that a lead was merged into, or itself."""
        while into := self.leads[lead_id].merged_into:
            lead_id = into
        return lead_id

    def family(self, lead_id: str) -> set[str]:
        return {each for each in self.leads if self.owner(each) == self.owner(lead_id)}


def _as_jsonb(row: LeadRow) -> LeadRow:
    """Return the row as Postgres does: the text of a jsonb value has a space after each colon and comma."""
    return row._replace(attributes=json.dumps(json.loads(row.attributes), ensure_ascii=False))


class MemorySplits(SplitTables):
    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    async def past_merges(self, survivor_id: str) -> list[PastMerge]:
        return [
            PastMerge(
                one.merge.loser_id,
                one.number,
                stored_snapshot(one.merge.survivor),
                stored_snapshot(one.merge.loser),
                one.undone,
            )
            for one in self._tables.merges
            if one.merge.survivor_id == survivor_id
        ]

    async def moved_identities(self, survivor_id: str, _loser_id: str, merged_at: int) -> frozenset[tuple[str, str]]:
        moved = self._tables.merges[merged_at].identities
        return frozenset(i[1:] for i in moved if self._tables.identities.get(i) == survivor_id)

    async def own_touches(self, lead_id: str) -> list[Touch]:
        return list(self._tables.own_touches.get(lead_id, []))

    async def split_version(self, lead_id: str, _event_id: str) -> int:
        return max(version for of, version in self._tables.history if of == lead_id)


class MemoryTransaction(Transaction):
    def __init__(self, tables: Tables, signals: frozenset[str]) -> None:
        self._tables = tables
        self.splits = MemorySplits(tables)
        self._signals = signals

    async def receipts(self, events: Iterable[Event], _now: int) -> dict[str, Receipt]:
        return {e.key: self._tables.receipts[e.key] for e in events if e.key in self._tables.receipts}

    async def owned(self, wanted: Sequence[Identity]) -> dict[Identity, str]:
        stored = self._tables.identities
        return {i: stored[i] for i in wanted if i in stored}

    async def suppressions(self, identities: Sequence[Identity]) -> dict[Identity, Suppression]:
        stored = self._tables.suppressions
        return {i: stored[i] for i in identities if i in stored}

    async def owners(self, events: Sequence[Event]) -> dict[Identity, str]:
        stored, leads = self._tables.identities, self._tables.leads
        named = [i for event in events for i in event.identities if i[1] == LEAD]
        found = {i: self._tables.owner(i[2]) for i in named if i[2] in leads and leads[i[2]].tenant == i[0]}
        return found | {i: stored[i] for event in events for i in event.identities if i in stored}

    async def holders(self, lead_ids: Collection[str]) -> dict[str, Holder]:
        found: dict[str, Holder] = {}
        for lead_id in lead_ids:
            own = [i for i, of in self._tables.identities.items() if of == lead_id]
            strong = any(DEFAULT.is_strong(kind, value) for _, kind, value in own)
            family = self._tables.family(lead_id)
            apart = frozenset(self._tables.owner(other) for one, other in self._tables.apart if one in family)
            counts = Counter(kind for _, kind, _ in own)
            found[lead_id] = Holder(self._tables.leads[lead_id].version, counts, strong, apart)
        return found

    async def lock_merged(self, lead_ids: Collection[str]) -> dict[str, LeadRow]:
        return {lead_id: _as_jsonb(self._tables.leads[lead_id]) for lead_id in lead_ids}

    async def bind(self, bindings: Mapping[Identity, str]) -> None:
        assert not bindings.keys() & self._tables.identities.keys()
        self._tables.identities |= bindings

    async def lock(self, lead_ids: Collection[str]) -> dict[str, LeadRow]:
        found = {lead_id: _as_jsonb(self._tables.leads[lead_id]) for lead_id in lead_ids}
        assert not any(lead.merged_into for lead in found.values())
        return found

    async def touches(self, lead_ids: Collection[str], after: Sequence[int]) -> dict[str, list[Touch]]:
        found = {lead_id: Outermost(after) for lead_id in lead_ids}
        for lead_id, outermost in found.items():
            for touch in self._tables.touches.get(lead_id, []):
                outermost.add(touch)
        return {lead_id: outermost.touches for lead_id, outermost in found.items()}

    async def past(self, lead_ids: Collection[str], fields: Collection[str]) -> dict[str, list[PastValues]]:
        stored = self._tables.past
        return {
            lead_id: [one for one in stored.get(lead_id, []) if one.merging or not one.values.keys().isdisjoint(fields)]
            for lead_id in lead_ids
        }

    async def history(
        self, redelivered: Sequence[tuple[Event, Receipt]]
    ) -> tuple[dict[tuple[str, int], PastChange], dict[str, LeadRow]]:
        places = [(receipt.lead_id, receipt.version) for _, receipt in redelivered]
        past = {place: self._tables.history[place] for place in places}
        lead_ids = {lead_id for lead_id, _ in places} | {loser for change in past.values() for loser in change.merged}
        return past, {lead_id: _as_jsonb(self._tables.leads[lead_id]) for lead_id in lead_ids}

    async def signal_types(self) -> frozenset[str]:
        return self._signals

    async def refused(self, redelivered: Sequence[tuple[Event, Receipt]]) -> list[Refused]:
        ids = {(receipt.lead_id, event.event_id) for event, receipt in redelivered}
        return [each for each in self._tables.refused.values() if (each.lead_id, each.event.event_id) in ids]

    async def write(self, decision: Decision, lifted: Mapping[Identity, Suppression]) -> list[Refused]:
        refused = self._write(decision)
        self._tables.suppressions |= lifted
        for erasure in decision.erasures:
            self._erase(erasure)
        return refused

    def _erase(self, erasure: Erasure) -> None:
        tables = self._tables
        own = {erasure.lead_id} | {key for key, lead in tables.leads.items() if lead.merged_into == erasure.lead_id}
        for identity in [i for i, of in tables.identities.items() if of == erasure.lead_id and i not in erasure.kept]:
            if erasure.requested:
                del tables.identities[identity]
                tables.suppressions[identity] = Suppression(erasure.lead_id, erasure.event_id, erasure.erased_at)
        for lead_id in own:
            forgotten = {c.version for c in tables.said.get(lead_id, []) if c.at <= erasure.erased_at}
            for key in [k for k in tables.history if k[0] == lead_id and k[1] in forgotten]:
                tables.history[key] = tables.history[key]._replace(changes="{}")

    def _write(self, decision: Decision) -> list[Refused]:
        tables = self._tables
        inserted = {lead.lead_id: lead for lead in decision.inserted}
        updated = {lead.lead_id: lead for lead in decision.updated}
        assert not inserted.keys() & tables.leads.keys()
        assert updated.keys() <= tables.leads.keys()
        tables.leads |= inserted | {i: lead._replace(split=tables.leads[i].split) for i, lead in updated.items()}
        for merge in decision.merges:
            moved = [identity for identity, lead_id in tables.identities.items() if lead_id == merge.loser_id]
            tables.identities |= dict.fromkeys(moved, merge.survivor_id)
            tables.merges.append(StoredMerge(merge, moved, len(tables.merges)))
            tables.touches.setdefault(merge.survivor_id, []).extend(tables.touches.get(merge.loser_id, []))
            tables.past.setdefault(merge.survivor_id, []).extend(tables.past.get(merge.loser_id, []))
        if undone := decision.undone:
            tables.identities |= {(undone.tenant, *each): undone.loser_id for each in undone.returning}
            tables.merges[undone.merged_at].undone = True
            pair = (undone.survivor_id, undone.loser_id)
            tables.apart |= {pair, pair[::-1]}
            tables.leads |= {lead_id: tables.leads[lead_id]._replace(split=True) for lead_id in pair}
            survivor = tables.leads[undone.survivor_id]
            tables.leads[undone.survivor_id] = survivor._replace(created_at=undone.created_at)
        if decision.merges and decision.accepted[0].event.type.name == MERGE:
            family = tables.family(decision.accepted[0].lead_id)
            tables.apart = {pair for pair in tables.apart if not family.issuperset(pair)}
        for change in decision.accepted:
            event = change.event
            assert event.key not in tables.receipts or (decision.undone and change is decision.accepted[1])
            assert (change.lead_id, change.version) not in tables.history
            receipt = Receipt(*event.coordinates, change.lead_id, change.version, event.content)
            tables.receipts.setdefault(event.key, receipt)
            past = PastChange(change.decided_at, change.changes, tuple(change.merged))
            tables.history[change.lead_id, change.version] = past
            tables.said.setdefault(change.lead_id, []).append(Said(change.version, event.at))
            reported = event.type.authority == REPORTING
            changes = json.loads(change.changes)
            values = PastValues(change.lead_id, event.at, change.decided_at, changes, reported, bool(change.merged))
            tables.past.setdefault(change.lead_id, []).append(values)
            if event.type.authority in TOUCHING:
                touch = (event.at, event.event_id, event.source)
                tables.touches.setdefault(change.lead_id, []).append(touch)
                tables.own_touches.setdefault(change.lead_id, []).append(touch)
        keys = {(r.lead_id, r.identity[1], "" if r.why == "cap" else r.identity[2]): r for r in decision.refused}
        new = {key: refused for key, refused in keys.items() if key not in tables.refused}
        tables.refused |= {
            key: refused._replace(event=refused.event._replace(message=None)) for key, refused in new.items()
        }
        return list(new.values())


class MemoryStore(Store):
    """``fail`` is called with the events of each transaction; an error that it raises rolls the transaction back."""

    def __init__(self, fail: Callable[[Sequence[Event]], None] = lambda _: None) -> None:
        self.tables = Tables()
        self.signals = frozenset({"form_submitted"})
        self.committed: list[list[str]] = []  # the event ids of each transaction
        self._fail = fail

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        working = Tables(**{f.name: copy.deepcopy(getattr(self.tables, f.name)) for f in fields(Tables)})
        ids: list[str] = []
        yield _Failing(working, self.signals, self._fail, ids)
        self.tables = working
        self.committed.append(ids)

    async def make_months(self, now: int) -> None:
        pass

    def summary(self) -> list[str]:
        """Return the leads without their ids, and check that the versions of each lead have no gap."""
        tables = self.tables
        live = {lead_id: lead for lead_id, lead in tables.leads.items() if not lead.merged_into}
        without = live.keys() - tables.identities.values()
        assert set(tables.identities.values()) <= set(live)
        assert all(live[lead_id].erased_at is not None for lead_id in without)
        for lead_id, lead in tables.leads.items():
            versions = sorted(version for of, version in tables.history if of == lead_id)
            assert versions == list(range(1, lead.version + 1 - bool(lead.merged_into)))
        found: list[Any] = []
        for lead_id, lead in live.items():
            identities = sorted(identity for identity, of in tables.identities.items() if of == lead_id)
            known = json.loads(lead.attributes), json.loads(lead.provenance)
            known[1].pop(LOST, None)  # what may count again if a merge is undone: depends on when that was
            found.append([identities, *known, lead.erased_at])
        return sorted(json.dumps(lead, sort_keys=True) for lead in found)


class _Failing(MemoryTransaction):
    def __init__(
        self, tables: Tables, signals: frozenset[str], fail: Callable[[Sequence[Event]], None], ids: list[str]
    ) -> None:
        super().__init__(tables, signals)
        self._fail = fail
        self._ids = ids

    async def receipts(self, events: Iterable[Event], now: int) -> dict[str, Receipt]:
        found = list(events)
        self._fail(found)
        self._ids += [event.event_id for event in found]
        return await super().receipts(found, now)
