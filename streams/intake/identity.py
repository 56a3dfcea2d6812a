"""Stage 4 of 6: whose event is it? Afterwards every event has a lead, and no identity belongs to two leads.

Identifiers are normalised before they are matched: e-mail lower-cased and trimmed, phone to E.164, the others trimmed.
An event whose identifiers hit several leads makes them one; the oldest survives (ids are time-ordered: the smallest).
That is a transitive closure, so the same events in any order give the same groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from infra.clock import uuid7
from schemas.addresses import normal_email
from schemas.rules import e164
from streams.intake.event import Event, Identity


def identities(tenant: str, identifiers: Mapping[str, Any]) -> tuple[Identity, ...]:
    """Return the normalised identities of an event; a phone number that cannot be parsed identifies nobody."""
    found: list[Identity] = []
    if value := identifiers["external_id"].strip():
        found.append((tenant, "external_id", value))
    if value := normal_email(identifiers["email"]):
        found.append((tenant, "email", value))
    if (value := identifiers["phone"]) and (number := e164(value)):
        found.append((tenant, "phone", number))
    if value := identifiers["anonymous_id"].strip():
        found.append((tenant, "anonymous_id", value))
    found += [(tenant, f"crm:{crm}", value) for crm, value in identifiers["crm_ids"].items() if value]
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Identified:
    """Who is who after a batch."""

    lead_ids: list[str]  # of each event, in the batch's order
    fresh: frozenset[str]  # leads that did not exist before
    merges: dict[str, str]  # existing lead -> the existing lead that it becomes part of
    bindings: dict[Identity, str]  # identities that nobody had before -> lead


def identify(events: Iterable[Event], known: Mapping[Identity, str], now: int) -> Identified:
    """Group ``events`` by shared identities and name each group's lead; ``known`` are the identities stored so far."""
    groups = _Groups()
    events = list(events)
    for event in events:
        first = event.identities[0]
        for identity in event.identities:
            groups.join(first, identity)
            if identity in known:
                groups.join(first, known[identity])
    leads: dict[Any, str] = {}  # root -> surviving lead
    merges: dict[str, str] = {}
    for lead_id in sorted(set(known.values())):
        if (root := groups.root(lead_id)) in leads:
            merges[lead_id] = leads[root]
        else:
            leads[root] = lead_id
    fresh: set[str] = set()
    lead_ids: list[str] = []
    bindings: dict[Identity, str] = {}
    for event in events:
        root = groups.root(event.identities[0])
        if root not in leads:
            leads[root] = uuid7(now)
            fresh.add(leads[root])
        lead_ids.append(leads[root])
        for identity in event.identities:
            if identity not in known:
                bindings[identity] = leads[root]
    return Identified(lead_ids, frozenset(fresh), merges, bindings)


class _Groups:
    """Union-find over identities (tuples) and lead ids (strings)."""

    def __init__(self) -> None:
        self._parent: dict[Any, Any] = {}

    def root(self, item: Any) -> Any:
        parent = self._parent
        top = item
        while (up := parent.setdefault(top, top)) != top:
            top = up
        while parent[item] != top:  # shorten the way for the next who asks
            parent[item], item = top, parent[item]
        return top

    def join(self, one: Any, other: Any) -> None:
        if one is other:
            self._parent.setdefault(one, one)
        else:
            self._parent[self.root(other)] = self.root(one)
