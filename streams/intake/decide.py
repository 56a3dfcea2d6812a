"""Decides a batch: merges its events into their leads and returns the rows to write and the records to publish.

:mod:`streams.intake.merge` is stage 5 for one event; this module applies it to a whole batch. :func:`decide` is a pure
function: it has no connection and no clock, and does not change its input. :mod:`streams.intake.pipeline` does the
lookups before it, since each lookup depends on the result of the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import orjson

from infra.kafka.sizes import utf8_bytes
from streams.intake.dedupe import Deduplicated, Receipt
from streams.intake.event import Event, Identity
from streams.intake.identity import Identified
from streams.intake.merge import ERASURE, Lead, Touch, absorb, merge

FILTERED = ("email", "status", "owner", "region", "score")  # attributes that are also columns of the table leads


class LeadRow(NamedTuple):
    """A row of the table ``leads``. Times are microseconds since 1970, UTC."""

    lead_id: str
    tenant: str
    version: int
    created_at: int
    updated_at: int
    erased_at: int | None
    attributes: str  # JSON
    provenance: str  # JSON
    merged_into: str  # lead_id of the survivor, or ""
    filtered: tuple[Any, ...] = ()  # the values of FILTERED, if the lead is to be inserted


class PastChange(NamedTuple):
    """A version of a lead in its history."""

    decided_at: int
    changes: str  # JSON
    merged: tuple[str, ...]


class Change(NamedTuple):
    """An accepted event, and its effect on its lead."""

    event: Event
    lead_id: str
    version: int  # the version that the event made
    decided_at: int
    changed: Collection[str]  # the changed fields
    changes: str  # the changed fields and their new values, as JSON
    merged: dict[str, int]  # lead that was merged into this one -> its last version
    lead_version: int  # the lead's current version; for a redelivered event it can be higher than ``version``
    lead: str  # the lead at ``lead_version``: the fields of lead.avsc that are set, as JSON


class Merge(NamedTuple):
    """The merge of a stored lead into another one, with the data that is needed to undo it."""

    survivor_id: str
    loser_id: str
    tenant: str
    event_id: str
    survivor: str  # the survivor's attributes and provenance before the merge, as JSON
    loser: str  # those of the loser


class Oversize(NamedTuple):
    """An event that cannot be accepted, because the lead or a record about it would be too large."""

    event: Event
    what: Literal["lead", "record"]  # what would be too large


class Limits(NamedTuple):
    """The sizes that can be published."""

    lead_bytes: int  # maximum size of a lead's attributes as JSON
    fits: Callable[[Change], bool]  # whether each record about the change fits its topic


@dataclass(frozen=True, slots=True)
class DecisionInput:
    """The events of a batch, and everything that is stored about them."""

    now: int  # microseconds since 1970
    events: Deduplicated
    owners: Mapping[Identity, str]  # the leads of the stored identities of the new events
    identified: Identified  # the leads of the new events
    leads: Mapping[str, LeadRow]  # the stored leads that the new events change
    touches: Mapping[str, Sequence[Touch]]  # the touches of the leads in touches_needed()
    history: Mapping[tuple[str, int], PastChange]  # the changes by redelivered events, by lead_id and version
    current: Mapping[str, LeadRow]  # the leads of redelivered events, and the leads that these events merged
    signal_types: frozenset[str] = frozenset()  # the event types for which campaign signals are published


@dataclass(frozen=True, slots=True)
class Decision:
    """The rows to write and the records to publish; or only ``oversize``, if there are such events.

    ``accepted`` has the changes to write (receipts and history) and to publish. ``inserted``, ``updated``, ``merges``
    are only written, ``redelivered`` and ``duplicates`` only published. ``oversize``: the batch must be decided again
    without these events.
    """

    now: int = 0
    accepted: Sequence[Change] = ()
    inserted: Sequence[LeadRow] = ()
    updated: Sequence[LeadRow] = ()
    merges: Sequence[Merge] = ()
    redelivered: Sequence[Change] = ()
    duplicates: Sequence[Event] = ()
    signal_types: frozenset[str] = frozenset()
    oversize: Sequence[Oversize] = ()


def touches_needed(events: Sequence[Event], identified: Identified, leads: Mapping[str, LeadRow]) -> set[str]:
    """Return the stored leads whose touches :func:`decide` needs: those to erase, or to merge if one was erased."""
    merges = identified.merges
    erased = {to for event, to in zip(events, identified.lead_ids, strict=True) if event.type.name == ERASURE}
    erased |= {to for loser, to in merges.items() if (leads[loser].erased_at, leads[to].erased_at) != (None, None)}
    return (erased | {loser for loser, to in merges.items() if to in erased}) - identified.created


def decide(known: DecisionInput, limits: Limits) -> Decision:
    """Merge the new events into their leads, and reconstruct the changes of the redelivered events.

    Guarantees: each accepted event increases its lead's version by one. The records about it can be published, also
    when it is redelivered. The same events in other batches give the same leads.
    """
    work = _Work(known, limits)
    for event, lead_id in zip(known.events.new, known.identified.lead_ids, strict=True):
        if not work.accept(event, lead_id):
            break
    if work.oversize:
        return Decision(known.now, oversize=_certain(work.oversize, work.changes, known.owners))
    created = known.identified.created
    return Decision(
        known.now,
        work.changes,
        [_row(lead) for lead_id, lead in work.changed.items() if lead_id in created],
        [_row(lead) for lead_id, lead in work.changed.items() if lead_id not in created],
        work.merges,
        [_past_change(event, receipt, known) for event, receipt in known.events.redelivered],
        known.events.duplicates,
        known.signal_types,
    )


class _Work:
    """The working copies of a batch's leads, and the changes so far."""

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
        self.oversize: list[tuple[Oversize, str]] = []  # with the lead of each event

    def accept(self, event: Event, lead_id: str) -> bool:
        """Merge one event, or add it to ``oversize``; return False if no further event can be merged."""
        lead = self._leads.get(lead_id)
        if lead is None:
            lead = self._leads[lead_id] = Lead(lead_id, event.tenant, created_at=self._now, touches=[])
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
        return True

    def _exceeds(self, lead: Lead, losers: Sequence[Lead], event: Event) -> bool:
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


def _certain(
    found: list[tuple[Oversize, str]], changes: list[Change], owners: Mapping[Identity, str]
) -> list[Oversize]:
    """Return the events of ``found`` that are certainly too large: at least one of each lead.

    An event of ``found`` may belong to its lead only through the identities of another one. Without that one its lead
    may be smaller, so it is not certain: the batch is decided again without the certain ones.
    """
    leads = {lead_id for _, lead_id in found}
    identities = {i: change.lead_id for change in changes if change.lead_id in leads for i in change.event.identities}
    identities |= dict(owners)
    certain: list[Oversize] = []
    for oversize, lead_id in found:
        if lead_id in leads or any(identities.get(identity) == lead_id for identity in oversize.event.identities):
            leads.discard(lead_id)
            certain.append(oversize)
    return certain


def _past_change(event: Event, receipt: Receipt, known: DecisionInput) -> Change:
    """Return the change by a redelivered event. Its lead may have a newer version by now."""
    past = known.history[receipt.lead_id, receipt.version]
    lead = _working_copy(known.current[receipt.lead_id], None)
    lead.json = _json(lead.attributes)
    changed = orjson.loads(past.changes)
    merged = {loser: known.current[loser].version for loser in past.merged}
    changes, text = _json(changed), _lead_json(lead)
    return Change(event, lead.lead_id, receipt.version, past.decided_at, changed, changes, merged, lead.version, text)


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
    """Return the current state of the lead as JSON, since the next event of the batch changes the working copy."""
    # Formatted without a JSON library: ids are UUIDs and a tenant is [a-z0-9_-], so no text needs an escape.
    return (
        f'{{"lead_id":"{lead.lead_id}","tenant":"{lead.tenant}","version":{lead.version},'
        f'"merged_into":"{lead.merged_into}","created_at":{lead.created_at},"updated_at":{lead.updated_at}'
        f"{',' if lead.attributes else ''}{lead.json[1:]}"
    )


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()
