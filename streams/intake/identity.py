"""Stage 4 of 6: whose event is it? Afterwards every event has a lead, and no identity belongs to two leads.

An event whose identifiers hit several leads makes them one; the oldest survives (ids are time-ordered: the smallest).
That is a transitive closure, so the same events in any order give the same groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from streams.intake.event import Event, Identity

NewId = Callable[[int], str]  # the id of a lead created at a time in microseconds; later ones sort after earlier ones


@dataclass(frozen=True, slots=True)
class Identified:
    """The lead of each event of a batch, the leads and identities to create, and the leads to merge."""

    lead_ids: list[str]  # of each event, in the batch's order
    created: frozenset[str]  # leads that did not exist before
    merges: dict[str, str]  # existing lead -> the existing lead that it becomes part of
    bindings: dict[Identity, str]  # identities that no lead had before -> lead

    @property
    def existing(self) -> set[str]:
        """The leads that change and are stored already."""
        return {*self.lead_ids, *self.merges} - self.created


def identify(events: Iterable[Event], owners: Mapping[Identity, str], now: int, new_id: NewId) -> Identified:
    """Group ``events`` by shared identities and return each group's lead.

    ``owners`` are the leads of those identities that are stored. ``new_id`` is called with ``now`` for each new lead.
    """
    groups = _Groups()
    events = list(events)
    for event in events:
        first = event.identities[0]
        for identity in event.identities:
            groups.join(first, identity)
            if identity in owners:
                groups.join(first, owners[identity])
    leads: dict[Any, str] = {}  # root -> surviving lead
    merges: dict[str, str] = {}
    for lead_id in sorted(set(owners.values())):
        if (root := groups.root(lead_id)) in leads:
            merges[lead_id] = leads[root]
        else:
            leads[root] = lead_id
    created: set[str] = set()
    lead_ids: list[str] = []
    bindings: dict[Identity, str] = {}
    for event in events:
        root = groups.root(event.identities[0])
        if root not in leads:
            leads[root] = new_id(now)
            created.add(leads[root])
        lead_ids.append(leads[root])
        for identity in event.identities:
            if identity not in owners:
                bindings[identity] = leads[root]
    return Identified(lead_ids, frozenset(created), merges, bindings)


class _Groups:
    """Union-find over identities (tuples) and lead ids (strings)."""

    def __init__(self) -> None:
        self._parent: dict[Any, Any] = {}

    def root(self, item: Any) -> Any:
        parent = self._parent
        top = item
        while (up := parent.setdefault(top, top)) != top:
            top = up
        while parent[item] != top:  # path compression
            parent[item], item = top, parent[item]
        return top

    def join(self, one: Any, other: Any) -> None:
        if one is other:
            self._parent.setdefault(one, one)
        else:
            self._parent[self.root(other)] = self.root(one)
