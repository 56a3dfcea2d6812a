"""Stage 4 of 6: assign each event to a lead by its identities, so that each identity belongs to one lead.

:func:`streams.intake.event.identities` defines what an identity is. An event whose identities belong to several leads
merges them. The oldest lead survives: the one with the smallest id, since ids are in the order of creation. Groups are
transitive closures over shared identities, so the same events in any order give the same groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from streams.intake.event import Event, Identity

NewId = Callable[[int], str]  # time in microseconds -> id of a lead created then; ids sort in the order of these times


@dataclass(frozen=True, slots=True)
class Identified:
    """The lead of each event of a batch, and the new leads, merges and identities that follow."""

    lead_ids: list[str]  # the lead of each event, in the order of the batch
    created: frozenset[str]  # new leads
    merges: dict[str, str]  # stored lead -> the stored lead that it is merged into
    bindings: dict[Identity, str]  # new identity -> its lead

    @property
    def existing(self) -> set[str]:
        """The stored leads that the batch changes."""
        return {*self.lead_ids, *self.merges} - self.created


def identify(events: Iterable[Event], owners: Mapping[Identity, str], now: int, new_id: NewId) -> Identified:
    """Assign each event to a lead.

    Args:
        events: the new events of a batch, in order.
        owners: the lead of each stored identity of ``events``.
        now: current time in microseconds since 1970.
        new_id: is called with ``now`` for each new lead.

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
