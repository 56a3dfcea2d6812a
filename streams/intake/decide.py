"""Decides a batch: merges its events into their leads and returns the rows to write and the records to publish.

:mod:`streams.intake.merge` is stage 5 for one event; this module applies it to a whole batch. :func:`decide` is a pure
function: it has no connection and no clock, and does not change its input. :mod:`streams.intake.pipeline` does the
lookups before it, since each lookup depends on the result of the one before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from infra.kafka.sizes import utf8_bytes
from streams.intake.decision import (
    FILTERED,
    Change,
    Decision,
    DecisionInput,
    LeadRow,
    Limits,
    Merge,
    Oversize,
)
from streams.intake.dedupe import Receipt
from streams.intake.echo import History, PastValues
from streams.intake.event import ERASURE, Event
from streams.intake.identity import Identified
from streams.intake.merge import LOST, REPORTING, Lead, Touch, absorb, erase_until, merge, values_of
from streams.intake.provenance import stored_provenance

_STAMP = 100  # approximate bytes of a new field in a lead's provenance, without its name
_PROVENANCE = 4  # maximum size of a lead's provenance, hidden values included, as a multiple of that of its attributes


def touches_needed(
    events: Sequence[Event],
    identified: Identified,
    leads: Mapping[str, LeadRow],
    lifted: Mapping[str, tuple[int, str]] | None = None,
) -> tuple[set[str], list[int]]:
    """Return the stored leads whose touches :func:`decide` needs, and the rising times of erasures that restore them.

    They are those to erase, and those to merge if one of them was erased. ``lifted``: as in the input.
    """
    merges, lifted = identified.merges, lifted or {}
    erasures = [pair for pair in zip(events, identified.lead_ids, strict=True) if pair[0].type.name == ERASURE]
    times = {event.at for event, _ in erasures} | {at for at, _ in lifted.values()}
    erased = {to for _, to in erasures} | lifted.keys()
    for loser, to in merges.items():
        if past := [at for at in (leads[loser].erased_at, leads[to].erased_at) if at is not None]:
            times.update(past)
            erased.add(to)
    losers = {loser for loser, to in merges.items() if to in erased}
    return (erased | losers) - identified.created, sorted(times)


def reported_leads(events: Sequence[Event], identified: Identified) -> set[str]:
    """Return the stored leads whose newest changes :func:`decide` needs: those with a report of a CRM, and losers."""
    reported = _reported(events, identified)
    return (reported | {loser for loser, to in identified.merges.items() if to in reported}) - identified.created


def reported_fields(events: Sequence[Event]) -> set[str]:
    """Return the fields of the lead that the reports of a CRM among ``events`` are about."""
    return {name for event in events if event.type.authority == REPORTING for name, _ in values_of(event)}


def _reported(events: Sequence[Event], identified: Identified) -> set[str]:
    return {to for event, to in zip(events, identified.lead_ids, strict=True) if event.type.authority == REPORTING}


def decide(known: DecisionInput, limits: Limits) -> Decision:
    """Merge the new events into their leads, and reconstruct the changes of the redelivered events.

    Guarantees: each accepted event increases its lead's version by one. The records about it can be published, also
    when it is redelivered. The same events in other batches give the same leads.
    """
    work = _Work(known, limits)
    for event, lead_id in zip(known.events.new, known.identified.lead_ids, strict=True):
        if not work.accept(event, lead_id):
            break
        if work.bytes > limits.part_bytes and len(work.changes) < len(known.events.new):
            return Decision(known.now, cut=len(work.changes) / len(known.events.new))
    if work.oversize:
        return Decision(known.now, oversize=_certain(work.oversize, work.changes, known))
    redelivered, cut = _past_changes(known, limits.part_bytes - work.bytes)
    if cut:
        return Decision(known.now, cut=cut)
    created = known.identified.created
    return Decision(
        known.now,
        work.changes,
        [lead_row(lead) for lead_id, lead in work.changed.items() if lead_id in created],
        [lead_row(lead) for lead_id, lead in work.changed.items() if lead_id not in created],
        work.merges,
        redelivered,
        known.events.duplicates,
        known.events.reused,
        known.signal_types,
        refused=known.identified.refused,
    )


class _Work:
    """The working copies of a batch's leads, and the changes so far."""

    def __init__(self, known: DecisionInput, limits: Limits) -> None:
        self._now = known.now
        self._limits = limits
        self._leads = {lead_id: working_copy(row, known.touches.get(lead_id)) for lead_id, row in known.leads.items()}
        self._losers: dict[str, list[Lead]] = {}
        for loser_id, survivor_id in known.identified.merges.items():
            self._losers.setdefault(survivor_id, []).append(self._leads[loser_id])
        self._lifted = dict(known.lifted)
        self._past: dict[str, History] = {}
        for lead_id in _reported(known.events.new, known.identified):
            losers = [loser.lead_id for loser in self._losers.get(lead_id, ())]
            self._past[lead_id] = History(change for each in (lead_id, *losers) for change in known.past.get(each, ()))
        self.bytes = 0  # of the records about the changes, approximately
        self.changes: list[Change] = []
        self.changed: dict[str, Lead] = {}
        self.merges: list[Merge] = []
        self.oversize: list[tuple[Oversize, str]] = []  # with the lead of each event

    def accept(self, event: Event, lead_id: str) -> bool:
        """Merge one event, or add it to ``oversize``; return False if no further event can be merged."""
        lead = self._leads.get(lead_id)
        if lead is None:
            lead = self._leads[lead_id] = Lead(lead_id, event.tenant, created_at=self._now, touches=[])
        if erased := self._lifted.pop(lead_id, None):
            erase_until(lead, *erased)
        # The first event of a lead also merges its losers into it.
        losers = self._losers.pop(lead_id, [])
        # Compares an upper bound of the lead's size, before the lead is changed. Only an erasure can reduce the size.
        if self._exceeds(lead, losers, event) and event.type.name != ERASURE:
            self.oversize.append((Oversize(event, "lead"), lead_id))
            return True
        for loser in losers:
            self._merge_leads(lead, loser, event)
        change = self._next_version(lead, event, {loser.lead_id: loser.version for loser in losers} if losers else {})
        lead_fits = utf8_bytes(lead.json) <= self._limits.lead_bytes
        if not lead_fits or not self._limits.fits(change):
            # Rare: an erasure that restores or merges many values. The lead is changed already.
            self.oversize.append((Oversize(event, "record" if lead_fits else "lead"), lead_id))
            return False
        self.changed[lead_id] = lead
        self.changes.append(change)
        self.bytes += change.bytes
        return True

    def _exceeds(self, lead: Lead, losers: Sequence[Lead], event: Event) -> bool:
        if sum(each.provenance_bytes for each in (lead, *losers)) > _PROVENANCE * self._limits.lead_bytes and (
            losers or any(name not in lead.provenance for name, _ in values_of(event))
        ):
            return True  # new fields: the known ones can still be changed
        for exact in (False, True):
            if exact:  # Postgres' text of jsonb has spaces: up to a fifth larger than the published text
                for each in (lead, *losers):
                    each.json = _json(each.attributes)
            bound = utf8_bytes(lead.json) + len(event.properties)
            if losers:
                bound += sum(utf8_bytes(loser.json) for loser in losers)
            if bound <= self._limits.lead_bytes:
                return False
        return True

    def _merge_leads(self, lead: Lead, loser: Lead, event: Event) -> None:
        row = Merge(lead.lead_id, loser.lead_id, lead.tenant, event.event_id, _snapshot(lead), _snapshot(loser))
        absorb(lead, loser)
        lead.provenance.setdefault(LOST, {})
        loser.version += 1
        loser.updated_at = self._now
        loser.merged_into = lead.lead_id
        loser.json = _json(loser.attributes)
        self.merges.append(row)
        self.changed[loser.lead_id] = loser

    def _next_version(self, lead: Lead, event: Event, merged: dict[str, int]) -> Change:
        reporting = event.type.authority == REPORTING
        past = self._past.get(lead.lead_id)
        ignored = past.echoes(event, lead.attributes) if reporting and past is not None else ()
        fields = len(lead.provenance)
        changed = merge(lead, event, ignored)
        if past is not None:
            past.add(PastValues(lead.lead_id, event.at, self._now, changed, reporting, bool(merged)))
        if len(lead.provenance) > fields:
            lead.provenance_bytes += (len(lead.provenance) - fields) * _STAMP + len(event.properties)
        lead.version += 1
        lead.updated_at = self._now
        lead.json = _json(lead.attributes)
        changes = _json(changed) if changed else "{}"
        version = lead.version
        return Change(event, lead.lead_id, version, self._now, changed, changes, merged, version, published_lead(lead))


def _certain(found: list[tuple[Oversize, str]], changes: list[Change], known: DecisionInput) -> list[Oversize]:
    """Return the events of ``found`` that are certainly too large: at least one of each lead.

    An event of ``found`` may belong to its lead only through the identities of another one. Without that one its lead
    may be smaller, so it is not certain: the batch is decided again without the certain ones.
    """
    leads = {lead_id for _, lead_id in found}
    new = known.identified.bindings
    identities = {i: new.get(i) for change in changes if change.lead_id in leads for i in change.event.identities}
    identities |= dict(known.owners)
    certain: list[Oversize] = []
    for oversize, lead_id in found:
        if lead_id in leads or any(identities.get(identity) == lead_id for identity in oversize.event.identities):
            leads.discard(lead_id)
            certain.append(oversize)
    return certain


def _past_changes(known: DecisionInput, max_bytes: int) -> tuple[list[Change], float]:
    """Return the changes by redelivered events. If they are larger than ``max_bytes``: none, and where to cut."""
    found: list[Change] = []
    leads: dict[str, tuple[int, str]] = {}  # the current version of each lead, and its JSON
    size, count = 0, len(known.events.redelivered)
    for event, receipt in known.events.redelivered:
        if receipt.lead_id not in leads:
            lead = working_copy(known.current[receipt.lead_id], None)
            lead.json = _json(lead.attributes)
            leads[receipt.lead_id] = lead.version, published_lead(lead)
        found.append(_past_change(event, receipt, known, *leads[receipt.lead_id]))
        size += found[-1].bytes
        if size > max_bytes and (len(found) < count or known.events.new) and count > 1:
            return [], max(len(found) - 1, 1) / count if len(found) > 1 else 1 / count
    return found, 0


def _past_change(event: Event, receipt: Receipt, known: DecisionInput, version: int, lead: str) -> Change:
    """Return the change by a redelivered event. Its lead may have a newer version by now, or be erased."""
    past = known.history[receipt.lead_id, receipt.version]
    erased_at = known.current[receipt.lead_id].erased_at
    if erased_at is not None and event.at <= erased_at and event.type.name != ERASURE:
        event = event.without_content()  # what an erased person said is not published again
    changed = orjson.loads(past.changes)
    merged = {loser: known.current[loser].version for loser in past.merged}
    changes = _json(changed)
    return Change(event, receipt.lead_id, receipt.version, past.decided_at, changed, changes, merged, version, lead)


def working_copy(row: LeadRow, touches: Sequence[Touch] | None) -> Lead:
    """Return a stored lead as an object that can be changed."""
    return Lead(
        row.lead_id,
        row.tenant,
        row.version,
        row.created_at,
        row.updated_at,
        row.merged_into,
        orjson.loads(row.attributes),
        stored_provenance(row.provenance),
        row.attributes,
        None if touches is None else list(touches),
        utf8_bytes(row.provenance),
    )


def lead_row(lead: Lead) -> LeadRow:
    """Return the row of a lead; ``lead.json`` has its attributes."""
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
        filtered=tuple(map(lead.attributes.get, FILTERED)),
    )


def _snapshot(lead: Lead) -> str:
    return _json({"attributes": lead.attributes, "provenance": lead.provenance, "created_at": lead.created_at})


def published_lead(lead: Lead) -> str:
    """Return the current state of the lead as JSON: a text, since the next event changes the working copy."""
    # Formatted without a JSON library: ids are UUIDs and a tenant is [a-z0-9_-], so no text needs an escape.
    return (
        f'{{"lead_id":"{lead.lead_id}","tenant":"{lead.tenant}","version":{lead.version},'
        f'"merged_into":"{lead.merged_into}","created_at":{lead.created_at},"updated_at":{lead.updated_at}'
        f"{',' if lead.attributes else ''}{lead.json[1:]}"
    )


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()
