"""Between the stages 3 and 4: refuse events about an erased person.

An erased lead has no identities: they are in the suppression list, as keyed hashes. An event with one of them would
create the person again. It is refused (dead, ``suppressed``), with these exceptions:

- The person's own new consent: an event with the authority person that grants a consent and was said after the erasure.
  It lifts the suppression of its identities, and a new lead begins. What was said until the erasure stays refused.
- A weak identity (phone, browser, shared address) can be another person's. An event with it is admitted if it also has
  a strong identity that is not suppressed, or an identity of a lead. So is what follows, since the weak identity then
  belongs to that lead.
- An erasure, which is recorded for the lead that was erased.

An answer to a question counts as said when the question was asked (``asked_at``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from streams.intake.decision import LeadRow
from streams.intake.event import ERASURE, Event, Identity
from streams.intake.identity import Identified
from streams.intake.identity_policy import Policies
from streams.intake.merge import values_of

_GRANTED = "granted"


class Suppression(NamedTuple):
    """A suppressed identity: the erased lead, its erasure, and the time of the person's new consent (None: none)."""

    lead_id: str
    event_id: str
    erased_at: int
    lifted_at: int | None = None


@dataclass(frozen=True, slots=True)
class Admitted:
    """The events of a batch that go on, those that are refused, and the identities whose suppression is lifted."""

    events: list[Event] = field(default_factory=list)
    refused: list[Event] = field(default_factory=list)
    lifted: dict[Identity, Suppression] = field(default_factory=dict)


def unowned(events: Iterable[Event], owners: Mapping[Identity, str]) -> list[Identity]:
    """Return the identities of ``events`` that belong to no lead: only these can be suppressed."""
    return list({identity: None for event in events for identity in event.identities if identity not in owners})


def said_at(event: Event) -> int:
    """Return when what an event says was known: an answer to a question says what was known when it was asked."""
    asked_at = event.record.get("asked_at") or event.at
    return min(event.at, int(asked_at))


def grants(event: Event) -> bool:
    """Return whether an event is a person's own consent."""
    return event.type.authority == "person" and any(
        name.startswith("consent.") and value == _GRANTED for name, value in values_of(event)
    )


def admit(
    events: Sequence[Event],
    owners: Mapping[Identity, str],
    suppressions: Mapping[Identity, Suppression],
    policies: Policies,
) -> Admitted:
    """Decide which of the new events of a batch go on, in order.

    Args:
        events: the new events.
        owners: the lead of each stored identity.
        suppressions: of the other identities.
        policies: the identity policy of each tenant.

    """
    if not suppressions:
        return Admitted(list(events))
    found = Admitted()
    for event in events:
        blocking = {i: s for i in event.identities if (s := _blocks(event, i, suppressions, found.lifted))}
        if event.type.name == ERASURE or not blocking or _is_another(event, blocking, owners, policies):
            found.events.append(event)
        elif said_at(event) > max(each.erased_at for each in blocking.values()) and grants(event):
            found.lifted.update({i: each._replace(lifted_at=event.at) for i, each in blocking.items()})
            found.events.append(event)
        else:
            found.refused.append(event)
    return found


def _blocks(
    event: Event,
    identity: Identity,
    suppressions: Mapping[Identity, Suppression],
    lifted: Mapping[Identity, Suppression],
) -> Suppression | None:
    suppression = lifted.get(identity) or suppressions.get(identity)
    if suppression is None or (suppression.lifted_at is not None and said_at(event) > suppression.erased_at):
        return None
    return suppression


def _is_another(
    event: Event, blocking: Mapping[Identity, Suppression], owners: Mapping[Identity, str], policies: Policies
) -> bool:
    policy = policies(event.tenant)
    if any(policy.is_strong(kind, value) for _, kind, value in blocking):
        return False
    return any(
        identity in owners or policy.is_strong(identity[1], identity[2])
        for identity in event.identities
        if identity not in blocking
    )


def erased_owners(
    events: Iterable[Event], owners: Mapping[Identity, str], known: Mapping[Identity, Suppression], admitted: Admitted
) -> dict[Identity, str]:
    """Return the erased lead of one identity of each erasure that is about no other lead: it is recorded there."""
    found: dict[Identity, str] = {}
    others: set[Identity] = set(admitted.lifted)  # identities of a lead that this batch makes
    for event in events:
        if event.type.name != ERASURE:
            others.update(event.identities)
        elif not any(identity in owners or identity in others for identity in event.identities):
            first = next((i for i in event.identities if i in known and known[i].lifted_at is None), None)
            if first is not None:
                found[first] = known[first].lead_id
    return found


def late(
    events: Sequence[Event],
    identified: Identified,
    leads: Mapping[str, LeadRow],
    lifted: Mapping[str, Suppression],
) -> list[Event]:
    """Return the events that were said before the erasure of the lead to which they belong.

    Args:
        events: the admitted events.
        identified: their leads.
        leads: the stored leads that they change.
        lifted: by lead, the suppression of the identities that the lead gets.

    """
    erased = {lead_id: row.erased_at for lead_id, row in leads.items() if row.erased_at is not None}
    for lead_id, each in lifted.items():
        erased[lead_id] = max(erased.get(lead_id, each.erased_at), each.erased_at)
    for loser, survivor in identified.merges.items():
        if loser in erased:
            erased[survivor] = max(erased.get(survivor, erased[loser]), erased[loser])
    if not erased:
        return []
    return [
        event
        for event, lead_id in zip(events, identified.lead_ids, strict=True)
        if event.type.name != ERASURE and lead_id in erased and said_at(event) <= erased[lead_id]
    ]


def lifted_leads(lifted: Mapping[Identity, Suppression], bindings: Mapping[Identity, str]) -> dict[str, Suppression]:
    """Return the newest suppression of the identities that each lead gets because it is lifted."""
    found: dict[str, Suppression] = {}
    for identity, suppression in lifted.items():
        if (lead_id := bindings.get(identity)) and (
            lead_id not in found or found[lead_id].erased_at < suppression.erased_at
        ):
            found[lead_id] = suppression
    return found
