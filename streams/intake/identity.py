"""Stage 4 of 6: assign each event to a lead by its identities, by the policy of its tenant.

An identity is an identifier in its normal form. It belongs to one lead. :mod:`streams.intake.identity_policy` says
which kinds are strong.

- **Strong** kinds are somebody's own: CRM ids, external id, e-mail address. Events that share a strong identity are of
  one lead, transitively, so an event whose strong identities belong to several leads merges them.
- **Weak** kinds can be shared: phone number, anonymous id (a browser), an address of a role (info@) or of a disposable
  domain. A lead without a strong identity is not identified. A weak identity assigns an event to its lead unless both
  the event and the lead are identified and are different: then it stays with its lead, and the merge is *refused*.
  So the anonymous past of a shared device goes to the first who claims it.
- Leads that a **split** separated are not merged again, except by the event ``leads_merged``, whose two leads are its
  strong identities.
- **Placeholders** are no identities. A lead has at most so many identities of a kind as its **cap**: a further one is
  not assigned, and a merge that would exceed it is refused.

Guarantees: the same events in any order and in any batches give the same groups of identified people, below the caps.
Of the leads that are merged the oldest survives: the one with the smallest id, since ids are in the order of creation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from streams.intake.event import MERGE, Event, Identity
from streams.intake.identity_policy import IdentityPolicy, Policies, default_policy

Why = Literal["shared", "cap", "apart"]
NewId = Callable[[int], str]  # time in microseconds -> id of a lead created then; ids sort in the order of these times

_NO_GROUP = -1


class Holder(NamedTuple):
    """What is stored about a lead that may get identities: its version, its identities by kind, whether one is strong.

    The version is older than or as old as the rest. ``apart``: leads that a split separated from it.
    """

    version: int
    counts: Mapping[str, int]
    identified: bool
    apart: frozenset[str] = frozenset()


class Refused(NamedTuple):
    """An identity of an event that was not assigned to the event's lead.

    ``holder``: the lead to which it belongs; "" if there is none, because the event's lead has reached its cap.
    """

    event: Event
    identity: Identity
    lead_id: str
    holder: str
    why: Why


@dataclass(frozen=True, slots=True)
class Identified:
    """The lead of each event of a batch, and the new leads, merges and identities that follow."""

    lead_ids: list[str]  # the lead of each event, in the order of the batch
    created: frozenset[str]  # new leads
    merges: dict[str, str]  # stored lead -> the stored lead that it is merged into
    bindings: dict[Identity, str]  # new identity -> its lead
    refused: Sequence[Refused] = ()

    @property
    def existing(self) -> set[str]:
        """The stored leads that the batch changes."""
        return {*self.lead_ids, *self.merges} - self.created


def holders_needed(events: Iterable[Event], owners: Mapping[Identity, str]) -> set[str]:
    """Return the stored leads whose :class:`Holder` :func:`identify` needs: those that may get identities."""
    found: set[str] = set()
    for event in events:
        leads = {owners.get(identity) for identity in event.identities}
        if len(leads) > 1:
            found |= {lead for lead in leads if lead is not None}
    return found


def changed_holders(identified: Identified, holders: Mapping[str, Holder], versions: Mapping[str, int]) -> list[str]:
    """Return the leads that another worker may have identified since their holder was read: decide again.

    ``versions``: the current ones of the locked leads.
    """
    return [
        lead_id
        for lead_id in identified.existing
        if (holder := holders.get(lead_id)) and not holder.identified and holder.version != versions[lead_id]
    ]


def identify(
    events: Iterable[Event],
    owners: Mapping[Identity, str],
    now: int,
    new_id: NewId,
    *,
    holders: Mapping[str, Holder] | None = None,
    policies: Policies = default_policy,
) -> Identified:
    """Assign each event to a lead.

    Args:
        events: the new events of a batch, in order.
        owners: the lead of each stored identity of ``events``.
        now: current time in microseconds since 1970.
        new_id: is called with ``now`` for each new lead.
        holders: of the leads of :func:`holders_needed`.
        policies: the policy of each tenant.

    """
    work = _Assignment(owners, holders or {}, policies)
    events = list(events)
    for event in events:
        work.assign_strong(event)
    for number, event in enumerate(events):
        work.assign_weak(number, event)
    return work.result(now, new_id)


@dataclass(slots=True)
class _Group:
    """A lead to be: identities and stored leads that belong together."""

    counts: dict[str, int]  # of identities, by kind
    identified: bool = False
    lead_id: str = ""  # the oldest stored lead in it
    leads: frozenset[str] = frozenset()  # the stored leads in it
    apart: frozenset[str] = frozenset()  # the leads that it must not be merged with


class _Assignment:
    """Union-find over groups. Strong identities of all events come first, so that they do not depend on the order."""

    def __init__(self, owners: Mapping[Identity, str], holders: Mapping[str, Holder], policies: Policies) -> None:
        self._owners = owners
        self._holders = holders
        self._policies = policies
        self._policy: dict[str, IdentityPolicy] = {}  # of each tenant, the same for the whole batch
        self._parents: dict[int, int] = {}  # group -> a group that it was joined to
        self._groups: list[_Group] = []
        self._stored: dict[str, int] = {}  # stored lead -> its group
        self._bound: dict[Identity, int] = {}  # new identity -> its group
        self._events: list[int] = []  # the group of each event; _NO_GROUP: not assigned yet
        self._weak: list[list[Identity]] = []  # the weak identities of each event
        self._refused: list[tuple[Event, Identity, int, int, Why]] = []

    def assign_strong(self, event: Event) -> None:
        """Assign an event by its strong identities."""
        if (policy := self._policy.get(event.tenant)) is None:
            policy = self._policy[event.tenant] = self._policies(event.tenant)
        strong: list[Identity] = []
        weak: list[Identity] = []
        for identity in event.identities:
            (strong if policy.is_strong(identity[1], identity[2]) else weak).append(identity)
        self._weak.append(weak)
        self._events.append(self._assign(event, strong, _NO_GROUP, policy, strong=True) if strong else _NO_GROUP)

    def assign_weak(self, number: int, event: Event) -> None:
        """Assign an event by its weak identities, after the strong ones of all events."""
        if weak := self._weak[number]:
            policy = self._policy[event.tenant]
            self._events[number] = self._assign(event, weak, self._events[number], policy, strong=False)

    def _assign(
        self, event: Event, identities: Sequence[Identity], group: int, policy: IdentityPolicy, *, strong: bool
    ) -> int:
        new: list[Identity] = []
        for identity in identities:
            holder = self._holder(identity)
            if holder == _NO_GROUP:
                new.append(identity)
            elif group == _NO_GROUP:
                group = self._root(holder)
            elif (holder := self._root(holder)) != (group := self._root(group)):
                if why := self._obstacle(group, holder, policy, strong=strong, merge=event.type.name == MERGE):
                    self._refused.append((event, identity, group, holder, why))
                else:
                    self._join(group, holder)
        group = self._new_group() if group == _NO_GROUP else self._root(group)
        data = self._groups[group]
        for identity in new:
            kind = identity[1]
            if data.counts.get(kind, 0) >= policy.cap(kind):
                self._refused.append((event, identity, group, _NO_GROUP, "cap"))
            else:
                self._bound[identity] = group
                data.counts[kind] = data.counts.get(kind, 0) + 1
                data.identified = data.identified or strong
        return group

    def _holder(self, identity: Identity) -> int:
        if (lead_id := self._owners.get(identity)) is None:
            return self._bound.get(identity, _NO_GROUP)
        if (group := self._stored.get(lead_id)) is None:
            group = self._stored[lead_id] = self._new_group(lead_id)
            if known := self._holders.get(lead_id):
                self._groups[group].counts.update(known.counts)
                self._groups[group].identified = known.identified
                self._groups[group].apart = known.apart
        return group

    def _obstacle(self, one: int, other: int, policy: IdentityPolicy, *, strong: bool, merge: bool) -> Why | None:
        """Return why two groups must not be joined, or None. ``merge``: somebody requests it."""
        first, second = self._groups[one], self._groups[other]
        if not merge and (first.apart & second.leads or second.apart & first.leads):
            return "apart"
        if not strong and first.identified and second.identified:
            return "shared"
        counts = first.counts
        over = any(counts.get(kind, 0) + count > policy.cap(kind) for kind, count in second.counts.items())
        return "cap" if over else None

    def _join(self, one: int, other: int) -> None:
        first, second = self._groups[one], self._groups[other]
        for kind, count in second.counts.items():
            first.counts[kind] = first.counts.get(kind, 0) + count
        first.identified = first.identified or second.identified
        first.leads, first.apart = first.leads | second.leads, first.apart | second.apart
        first.lead_id = min(first.lead_id or second.lead_id, second.lead_id or first.lead_id)
        self._parents[other] = one

    def _new_group(self, lead_id: str = "") -> int:
        self._groups.append(_Group({}, lead_id=lead_id, leads=frozenset({lead_id} if lead_id else ())))
        return len(self._groups) - 1

    def _root(self, group: int) -> int:
        parents = self._parents
        root = group
        while (up := parents.get(root)) is not None:
            root = up
        while group != root:  # path compression
            parents[group], group = root, parents[group]
        return root

    def result(self, now: int, new_id: NewId) -> Identified:
        """Return the assignment of all events."""
        created: set[str] = set()

        def lead_of(group: int) -> str:
            data = self._groups[self._root(group)]
            if not data.lead_id:
                data.lead_id = new_id(now)
                created.add(data.lead_id)
            return data.lead_id

        lead_ids = [lead_of(group) for group in self._events]
        merges = {lead: to for lead, group in self._stored.items() if (to := lead_of(group)) != lead}
        bindings = {identity: lead_of(group) for identity, group in self._bound.items()}
        refused: list[Refused] = []
        for event, identity, group, holder, why in self._refused:
            other = "" if holder == _NO_GROUP else lead_of(holder)
            if (lead := lead_of(group)) != other:  # else another event joined them
                refused.append(Refused(event, identity, lead, other, why))
        return Identified(lead_ids, frozenset(created), merges, bindings, refused)
