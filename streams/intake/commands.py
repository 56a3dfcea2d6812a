"""Decides commands: events that name leads instead of people. Each is decided alone (:mod:`.transactions`).

``leads_merged`` is merged like every event, by the ids of its leads; this module has the reasons why it may not be.
``lead_split`` undoes a merge. A command that cannot be executed is dead, and nothing changes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import orjson

from infra.kafka.sizes import utf8_bytes
from infra.outcomes import Dead, Problem, Reason
from streams.intake.decide import decide, lead_row, published_lead, working_copy
from streams.intake.decision import Change, Decision, DecisionInput, LeadRow, Limits, Oversize
from streams.intake.dedupe import Deduplicated
from streams.intake.event import MERGE, SPLIT, DeadRecord, Event, Identity
from streams.intake.identity import Identified
from streams.intake.route import origin_of
from streams.intake.split import SplitInput, split
from streams.intake.split_store import Undone
from streams.intake.store import Transaction
from streams.intake.transactions import TooLarge

_NOBODY = Identified([], frozenset(), {}, {})
_FIELDS = ("/lead_id", "/other_lead_id")


def is_split(events: Sequence[Event]) -> bool:
    """Return whether ``events`` is a split, which :func:`decide_split` decides."""
    return events[0].type.name == SPLIT


def unknown_leads(events: Sequence[Event], owners: Mapping[Identity, str]) -> DeadRecord | None:
    """Return why ``events`` cannot be decided if it is a merge of leads that do not exist, or that are one already."""
    if not events or events[0].type.name != MERGE:
        return None
    (event,) = events
    if unknown := _unknown(event, owners):
        return unknown
    first, second = (owners[identity] for identity in event.identities)
    if first == second:
        return _dead(event, Reason.SAME_LEAD, "/other_lead_id", f"both leads are the lead {first} already")
    return None


def not_to_be_merged(events: Sequence[Event], who: Identified, leads: Mapping[str, LeadRow]) -> DeadRecord | None:
    """Return why a merge is not possible, or None. ``leads``: the locked ones."""
    if not events or events[0].type.name != MERGE:
        return None
    (event,) = events
    if erased := _erased(event, leads):
        return erased
    if who.refused:
        message = "together, the leads would have more identities of a kind than the identity policy allows"
        return _dead(event, Reason.IDENTITY_CAP, "/other_lead_id", message)
    return None


async def decide_split(stored: Transaction, events: Deduplicated, now: int, limits: Limits) -> Decision:
    """Undo a merge, or publish a past split again.

    Guarantees: with a redelivery, the changes of both leads are published again.

    Raises:
        TooLarge: the survivor or a record about it would be too large.

    """
    if not events.new:
        redelivered = list(events.redelivered)
        for event, receipt in events.redelivered:
            loser_id = event.identities[1][2]
            version = await stored.splits.split_version(loser_id, event.event_id)
            redelivered.append((event, receipt._replace(lead_id=loser_id, version=version)))
        events = events._replace(redelivered=redelivered)
        history, current = await stored.history(redelivered)
        known_now = DecisionInput(now, events, {}, _NOBODY, {}, {}, {}, history, current)
        return decide(known_now, limits._replace(part_bytes=sys.maxsize))
    (event,) = events.new
    known = await _known(stored, event)
    if isinstance(known, DeadRecord):
        return Decision(now, dead=[known])
    survivor, loser, changed = split(known, now)
    rows = [lead_row(survivor), lead_row(loser)]
    leads = [published_lead(survivor), published_lead(loser)]
    changes = [
        Change(event, lead.lead_id, lead.version, now, own, orjson.dumps(own).decode(), {}, lead.version, text)
        for lead, own, text in zip((survivor, loser), (changed, {}), leads, strict=True)
    ]
    if utf8_bytes(rows[0].attributes) > limits.lead_bytes:
        raise TooLarge([Oversize(event, "lead")])
    if not all(map(limits.fits, changes)):
        raise TooLarge([Oversize(event, "record")])
    undone = Undone(
        survivor.lead_id,
        loser.lead_id,
        event.tenant,
        event.event_id,
        known.merge.merged_at,
        survivor.created_at,
        known.returning,
    )
    signals = await stored.signal_types()
    return Decision(now, changes, updated=rows, undone=undone, signal_types=signals)


async def _known(stored: Transaction, event: Event) -> SplitInput | DeadRecord:
    """Return what is stored about the merge to undo, with both leads locked; or why it cannot be undone."""
    if unknown := _unknown(event, await stored.owners([event])):
        return unknown
    survivor_id, loser_id = (lead_id for _, _, lead_id in event.identities)
    leads = await stored.lock_merged([survivor_id, loser_id])
    survivor, loser = leads[survivor_id], leads[loser_id]
    if erased := _erased(event, leads):
        return erased
    merges = await stored.splits.past_merges(survivor_id)
    merge = next((one for one in reversed(merges) if one.loser_id == loser_id and not one.undone), None)
    if merge is None:
        into = loser.merged_into
        message = f"it is merged into the lead {into}: split it from that one" if into else "it is not a merged lead"
        return _dead(event, Reason.NOT_MERGED, "/other_lead_id", message)
    if into := survivor.merged_into:
        return _dead(
            event, Reason.NOT_MERGED, "/lead_id", f"it is merged into the lead {into}: split it from that first"
        )
    live = {one.loser_id for one in merges if not one.undone}
    merges = [one for one in merges if not (one.undone and one.loser_id in live)]
    return SplitInput(
        working_copy(survivor, None),
        working_copy(loser, None),
        merges,
        merge,
        await stored.splits.moved_identities(survivor_id, loser_id, merge.merged_at),
        await stored.splits.own_touches(survivor_id),
    )


def _unknown(event: Event, owners: Mapping[Identity, str]) -> DeadRecord | None:
    problems = [
        Problem(path, f"the tenant {event.tenant} has no lead with this id")
        for path, identity in zip(_FIELDS, event.identities, strict=True)
        if identity not in owners
    ]
    return _dead_record(event, Dead(Reason.UNKNOWN_LEAD, tuple(problems))) if problems else None


def _erased(event: Event, leads: Mapping[str, LeadRow]) -> DeadRecord | None:
    if any(lead.erased_at is not None for lead in leads.values()):
        what = "merged" if event.type.name == MERGE else "split: what it was merged from was erased, too"
        return _dead(event, Reason.ERASED, "/lead_id", f"one of the leads was erased; an erased lead cannot be {what}")
    return None


def _dead(event: Event, reason: Reason, path: str, message: str) -> DeadRecord:
    return _dead_record(event, Dead(reason, (Problem(path, message),)))


def _dead_record(event: Event, dead: Dead) -> DeadRecord:
    return DeadRecord(event.message, dead, origin_of(event.record))
