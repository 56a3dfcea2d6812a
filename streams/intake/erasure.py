"""What an erasure removes: pure functions over a decision. :mod:`streams.intake.erasure_writes` removes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from streams.intake.decision import Decision, Erasure, LeadRow
from streams.intake.event import ERASURE, Event, Identity
from streams.intake.identity import Identified
from streams.intake.identity_policy import Policies


class Follows(Exception):  # noqa: N818 - control flow, not a defect
    """Rolls a transaction back: events after ``erasure`` are about its lead, and must see its effect."""

    def __init__(self, erasure: Event) -> None:
        super().__init__("events after an erasure are about its lead")
        self.erasure = erasure


def followed_erasure(events: Sequence[Event], identified: Identified) -> Event | None:
    """Return the first erasure that is followed by an event about the same lead, or None."""
    erasures: dict[str, Event] = {}
    if any(event.type.name == ERASURE for event in events):
        for event, lead_id in zip(events, identified.lead_ids, strict=True):
            if lead_id in erasures:
                return erasures[lead_id]
            if event.type.name == ERASURE:
                erasures[lead_id] = event
    return None


def erasures_of(decision: Decision, leads: Mapping[str, LeadRow], policies: Policies) -> list[Erasure]:
    """Return the erasures of a decision: of leads with an erasure event, and of those merged with an erased lead.

    ``leads``: the stored leads as they were before the decision.
    """
    requested = {c.lead_id: c.event.event_id for c in decision.accepted if c.event.type.name == ERASURE}
    merged = {merge.survivor_id for merge in decision.merges}
    newest = {change.lead_id: change.event.event_id for change in decision.accepted}
    found: list[Erasure] = []
    for row in (*decision.inserted, *decision.updated):
        if row.erased_at is None or row.merged_into:
            continue
        before = leads.get(row.lead_id)
        changed = before is not None and before.erased_at != row.erased_at
        if row.lead_id not in requested and row.lead_id not in merged and not changed:
            continue
        event_id = requested.get(row.lead_id) or newest[row.lead_id]
        kept = said_after(row.tenant, row.attributes, policies) if row.lead_id in requested else frozenset()
        found.append(
            Erasure(row.lead_id, row.tenant, event_id, row.version, row.erased_at, row.lead_id in requested, kept)
        )
    return found


def said_after(tenant: str, attributes: str, policies: Policies) -> frozenset[Identity]:
    """Return the identities in the values of an erased lead, as JSON: they were said after the erasure."""
    values: dict[str, Any] = orjson.loads(attributes)
    texts = {name: values.get(name) or "" for name in ("external_id", "email", "phone")}
    identifiers = texts | {"anonymous_id": "", "crm_ids": values.get("crm_ids") or {}}
    return frozenset((tenant, *each) for each in policies(tenant).identify(identifiers))
