"""Stage 5 of 6 for a whole batch: from its events and what is stored about them to what to write and to publish.

A pure function: no connection, no clock of its own, and its input stays as it is. What has to be looked up depends on
earlier answers, so the lookups stand between the stages, in :mod:`streams.intake.pipeline`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from infra.kafka.sizes import utf8_bytes
from streams.intake.dedupe import Deduplicated, Receipt
from streams.intake.event import Event, Identity
from streams.intake.identity import Identified
from streams.intake.merge import ERASURE, Lead, Touch, absorb, merge

FILTERED = ("email", "status", "owner", "region", "score")  # attributes that are columns too


class LeadRow(NamedTuple):
    """A lead as it is stored. Times are microseconds since 1970."""

    lead_id: str
    tenant: str
    version: int
    created_at: int
    updated_at: int
    erased_at: int | None
    attributes: str  # JSON
    provenance: str  # JSON
    merged_into: str  # "": it is not part of another one
    filtered: tuple[Any, ...] = ()  # values of FILTERED; only of a lead to insert


class PastChange(NamedTuple):
    """A version of a lead, as its history has it."""

    decided_at: int
    changes: str  # JSON
    merged: tuple[str, ...]


class Change(NamedTuple):
    """One accepted event: the version it made, what it changed, the leads it merged, and the lead as it is now."""

    event: Event
    lead_id: str
    version: int
    decided_at: int
    changed: Collection[str]  # the fields that it changed
    changes: str  # those fields and their new values, as JSON
    merged: dict[str, int]  # each lead that became part of this one, and the version that ended it
    lead_version: int  # the lead's newest one: of a redelivered event it may be later than ``version``
    lead: str  # the known ones of lead.avsc's fields, as JSON


class Merge(NamedTuple):
    """Two stored leads that became one, with all it takes to undo it."""

    survivor_id: str
    loser_id: str
    tenant: str
    event_id: str
    survivor: str  # attributes and provenance before, as JSON
    loser: str


class Limits(NamedTuple):
    """What can be published."""

    lead_bytes: int  # of a lead's attributes as JSON
    fits: Callable[[Change], bool]  # whether each record that the change leads to fits its topic


@dataclass(frozen=True, slots=True)
class DecisionInput:
    """A batch's events, and what is stored about them."""

    now: int  # microseconds since 1970
    events: Deduplicated
    owners: Mapping[Identity, str]  # the leads of those identities of new events that are stored
    identified: Identified  # of the new events
    leads: Mapping[str, LeadRow]  # stored leads that the new events change
    touches: Mapping[str, Sequence[Touch]]  # of the leads that touches_needed names
    history: Mapping[tuple[str, int], PastChange]  # of redelivered events, by lead_id and version
    current: Mapping[str, LeadRow]  # the leads of redelivered events, and those that they merged
    signal_types: frozenset[str] = frozenset()  # the event types that campaigns listen to


@dataclass(frozen=True, slots=True)
class Decision:
    """What to write and what to publish.

    If ``too_large`` is not empty, ignore the other fields and decide again without those events.
    """

    now: int = 0
    # To write: receipts and history of the accepted events, and the leads.
    accepted: Sequence[Change] = ()
    inserted: Sequence[LeadRow] = ()
    updated: Sequence[LeadRow] = ()
    merges: Sequence[Merge] = ()
    # To publish: the accepted events, and these.
    redelivered: Sequence[Change] = ()
    duplicates: Sequence[Event] = ()
    signal_types: frozenset[str] = frozenset()
    # Events whose lead, or a record about it, would be too large: decide again without them.
    too_large: Sequence[Event] = ()


def touches_needed(events: Sequence[Event], identified: Identified, leads: Mapping[str, LeadRow]) -> set[str]:
    """Return the stored leads whose touches the decision needs: those erased now, or merged where one was erased."""
    merges = identified.merges
    erased = {to for event, to in zip(events, identified.lead_ids, strict=True) if event.type.name == ERASURE}
    erased |= {to for loser, to in merges.items() if (leads[loser].erased_at, leads[to].erased_at) != (None, None)}
    return (erased | {loser for loser, to in merges.items() if to in erased}) - identified.created


def decide(known: DecisionInput, limits: Limits) -> Decision:
    """Merge the new events into their leads, each making the next version, and restate the redelivered ones.

    Guarantees: a lead's version grows by one with each accepted event. What is accepted can be published, now and when
    it is redelivered. Cutting the same events into other batches leads to the same leads.
    """
    work = _Work(known, limits)
    for event, lead_id in zip(known.events.new, known.identified.lead_ids, strict=True):
        if not work.accept(event, lead_id):
            break
    if work.too_large:
        return Decision(known.now, too_large=_certainly_too_large(work.too_large, work.changes, known.owners))
    created = known.identified.created
    return Decision(
        known.now,
        work.changes,
        [_row(lead) for lead_id, lead in work.changed.items() if lead_id in created],
        [_row(lead) for lead_id, lead in work.changed.items() if lead_id not in created],
        work.merges,
        [_restate(event, receipt, known) for event, receipt in known.events.redelivered],
        known.events.duplicates,
        known.signal_types,
    )


class _Work:
    """The working copies of a batch's leads, and what its events have led to so far."""

    def __init__(self, known: DecisionInput, limits: Limits) -> None:
        self._now = known.now
        self._limits = limits
        self._leads = {lead_id: _working_copy(row, known.touches.get(lead_id)) for lead_id, row in known.leads.items()}
        self._losers: dict[str, list[Lead]] = {}
        for loser_id, survivor_id in known.identified.merges.items():
            self._losers.setdefault(survivor_id, []).append(self._leads[loser_id])
        self.changes: list[Change] = []
        self.changed: dict[str, Lead] = {}
        self.merges: list[Merge] = []
        self.too_large: list[tuple[Event, str]] = []

    def accept(self, event: Event, lead_id: str) -> bool:
        """Merge one event, or record that it is too large; return whether the next event can be merged."""
        lead = self._leads.get(lead_id)
        if lead is None:
            lead = self._leads[lead_id] = Lead(lead_id, event.tenant, created_at=self._now, touches=[])
        # The first event of a group carries the merge: from then on there is one lead.
        losers = self._losers.pop(lead_id, [])
        # An upper bound of the lead's size, before anything is changed: only an erasure may make a lead smaller.
        if self._exceeds(lead, losers, event) and event.type.name != ERASURE:
            self.too_large.append((event, lead_id))
            return True
        for loser in losers:
            self._merge_leads(lead, loser, event)
        change = self._next_version(lead, event, {loser.lead_id: loser.version for loser in losers} if losers else {})
        if utf8_bytes(lead.json) > self._limits.lead_bytes or not self._limits.fits(change):
            self.too_large.append((event, lead_id))  # rare: an erasure that restores or merges too much
            return False
        self.changed[lead_id] = lead
        self.changes.append(change)
        return True

    def _exceeds(self, lead: Lead, losers: Sequence[Lead], event: Event) -> bool:
        for exact in (False, True):
            if exact:  # Postgres' text of jsonb has spaces: up to a fifth more than what is published
                for each in (lead, *losers):
                    each.json = _json(each.attributes)
            most = utf8_bytes(lead.json) + len(event.properties)
            if losers:
                most += sum(utf8_bytes(loser.json) for loser in losers)
            if most <= self._limits.lead_bytes:
                return False
        return True

    def _merge_leads(self, lead: Lead, loser: Lead, event: Event) -> None:
        row = Merge(lead.lead_id, loser.lead_id, lead.tenant, event.event_id, _snapshot(lead), _snapshot(loser))
        absorb(lead, loser)
        loser.version += 1
        loser.updated_at = self._now
        loser.merged_into = lead.lead_id
        loser.json = _json(loser.attributes)
        self.merges.append(row)
        self.changed[loser.lead_id] = loser

    def _next_version(self, lead: Lead, event: Event, merged: dict[str, int]) -> Change:
        changed = merge(lead, event)
        lead.version += 1
        lead.updated_at = self._now
        lead.json = _json(lead.attributes)
        changes = _json(changed) if changed else "{}"
        version = lead.version
        return Change(event, lead.lead_id, version, self._now, changed, changes, merged, version, _lead_json(lead))


def _certainly_too_large(
    found: list[tuple[Event, str]], changes: list[Change], owners: Mapping[Identity, str]
) -> list[Event]:
    """Return the events that are certainly too large: those that have the same lead without the others, one at least.

    The others may have another lead once these are refused; the next attempt decides.
    """
    leads = {lead_id for _, lead_id in found}
    identities = {i: change.lead_id for change in changes if change.lead_id in leads for i in change.event.identities}
    identities |= dict(owners)
    certain: list[Event] = []
    for event, lead_id in found:
        if lead_id in leads or any(identities.get(identity) == lead_id for identity in event.identities):
            leads.discard(lead_id)
            certain.append(event)
    return certain


def _restate(event: Event, receipt: Receipt, known: DecisionInput) -> Change:
    """Return what was decided about a redelivered event; the lead may be newer by now."""
    past = known.history[receipt.lead_id, receipt.version]
    lead = _working_copy(known.current[receipt.lead_id], None)
    lead.json = _json(lead.attributes)
    changed = orjson.loads(past.changes)
    return Change(
        event,
        lead.lead_id,
        receipt.version,
        past.decided_at,
        changed,
        _json(changed),
        {loser: known.current[loser].version for loser in past.merged},
        lead.version,
        _lead_json(lead),
    )


def _working_copy(row: LeadRow, touches: Sequence[Touch] | None) -> Lead:
    return Lead(
        row.lead_id,
        row.tenant,
        row.version,
        row.created_at,
        row.updated_at,
        row.merged_into,
        orjson.loads(row.attributes),
        orjson.loads(row.provenance),
        row.attributes,
        None if touches is None else list(touches),
    )


def _row(lead: Lead) -> LeadRow:
    return LeadRow(
        lead.lead_id,
        lead.tenant,
        lead.version,
        lead.created_at,
        lead.updated_at,
        lead.erased_at,
        lead.json,
        _json(lead.provenance),
        lead.merged_into,
        tuple(map(lead.attributes.get, FILTERED)),
    )


def _snapshot(lead: Lead) -> str:
    return _json({"attributes": lead.attributes, "provenance": lead.provenance})


def _lead_json(lead: Lead) -> str:
    """Return the lead as it is now; the next event of the batch changes the working copy."""
    # Written by hand, for nothing in it can need an escape: ids are UUIDs, and a tenant is [a-z0-9_-].
    return (
        f'{{"lead_id":"{lead.lead_id}","tenant":"{lead.tenant}","version":{lead.version},'
        f'"merged_into":"{lead.merged_into}","created_at":{lead.created_at},"updated_at":{lead.updated_at}'
        f"{',' if lead.attributes else ''}{lead.json[1:]}"
    )


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()
