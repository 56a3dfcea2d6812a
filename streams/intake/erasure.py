"""What an erasure removes: pure functions over a decision. :mod:`streams.intake.erasure_writes` removes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from streams.intake.decision import Decision, Erasure, LeadRow
from streams.intake.event import ERASURE, Event, Identity
from streams.intake.identity_policy import Policies


def parts_of(events: Sequence[Event]) -> Iterator[Sequence[Event]]:
    """Yield ``events`` in parts that end with an erasure, so that none is decided together with what follows it."""
    start = 0
    for number, event in enumerate(events, 1):
        if event.type.name == ERASURE:
            yield events[start:number]
            start = number
    if start < len(events):
        yield events[start:]


def erasures_of(decision: Decision, leads: Mapping[str, LeadRow], policies: Policies) -> list[Erasure]:
    """Return the erasures of a decision: of leads with an erasure event, and of those merged with an erased lead.

    ``leads``: the stored leads as they were before the decision.
    """
    requested = {c.lead_id: c.event.event_id for c in decision.accepted if c.event.type.name == ERASURE}
    merged = {merge.survivor_id for merge in decision.merges}
    found: list[Erasure] = []
    for row in (*decision.inserted, *decision.updated):
        if row.erased_at is None or row.merged_into:
            continue
        before = leads.get(row.lead_id)
        changed = before is not None and before.erased_at != row.erased_at
        if row.lead_id not in requested and row.lead_id not in merged and not changed:
            continue
        event_id = requested.get(row.lead_id, decision.accepted[-1].event.event_id)
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
