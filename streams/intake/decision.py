"""The data of a decision: what is known about a batch of events, what intake makes of it, and the rows that it writes.

:mod:`streams.intake.decide` makes a decision, :mod:`streams.intake.writes` writes it, :mod:`streams.intake.route`
publishes it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from infra.kafka.sizes import utf8_bytes
from streams.intake.dedupe import Deduplicated, Reused
from streams.intake.echo import PastValues
from streams.intake.event import DeadRecord, Event, Identity
from streams.intake.identity import Identified, Refused
from streams.intake.merge import Touch
from streams.intake.split_store import Undone

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
    split: bool = False  # a merge of this lead was undone: an identity can have been moved since it was looked up
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

    @property
    def bytes(self) -> int:
        """The approximate size of the largest record about the change."""
        return utf8_bytes(self.lead) + len(self.event.properties)


class Merge(NamedTuple):
    """The merge of a stored lead into another one, with the data that is needed to undo it."""

    survivor_id: str
    loser_id: str
    tenant: str
    event_id: str
    survivor: str  # the survivor's attributes and provenance before the merge, as JSON
    loser: str  # those of the loser


class Erasure(NamedTuple):
    """A lead from which everything that was said until ``erased_at`` is removed, everywhere.

    ``requested``: an event requested it; otherwise the lead was merged with an erased one. ``kept``: identities that
    were said after it, which stay in clear. The lead's other identities are suppressed if it was requested.
    """

    lead_id: str
    tenant: str
    event_id: str
    version: int
    erased_at: int
    requested: bool
    kept: frozenset[Identity] = frozenset()


class Oversize(NamedTuple):
    """An event that cannot be accepted, because the lead or a record about it would be too large."""

    event: Event
    what: Literal["lead", "record"]  # what would be too large


class Limits(NamedTuple):
    """The sizes that can be published."""

    lead_bytes: int  # maximum size of a lead's attributes as JSON
    fits: Callable[[Change], bool]  # whether each record about the change fits its topic
    part_bytes: int  # maximum size of the leads and records of one transaction; one event may exceed it


@dataclass(frozen=True, slots=True)
class DecisionInput:
    """The events of a batch, and everything that is stored about them."""

    now: int  # microseconds since 1970
    events: Deduplicated
    owners: Mapping[Identity, str]  # the leads of the stored identities of the new events
    identified: Identified  # the leads of the new events
    leads: Mapping[str, LeadRow]  # the stored leads that the new events change
    touches: Mapping[str, Sequence[Touch]]  # of the leads of touches_needed()
    past: Mapping[str, Sequence[PastValues]]  # the newest changes of the leads in reported_leads()
    history: Mapping[tuple[str, int], PastChange]  # the changes by redelivered events, by lead_id and version
    current: Mapping[str, LeadRow]  # the leads of redelivered events, and the leads that these events merged
    signal_types: frozenset[str] = frozenset()  # the event types for which campaign signals are published
    # Lead -> erasure (time, event_id) whose suppression is lifted: the lead gets nothing that was said until then.
    lifted: Mapping[str, tuple[int, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decision:
    """The rows to write and the records to publish; or only ``oversize`` or ``cut``, if they are set.

    ``accepted`` has the changes to write (receipts and history) and to publish. ``inserted``, ``updated``, ``merges``
    are only written, ``redelivered``, ``duplicates`` and ``reused`` only published.
    ``undone``: ``accepted`` has the changes of both leads by the split that undoes this merge. ``dead``: commands that
    cannot be executed. ``refused``: the identities that were not assigned to the leads of their events.
    ``suppressed``: new events that are refused because they are about an erased person. ``erasures``: what is removed.
    ``oversize``: the batch must be decided again without these events. ``cut``: the batch is too large for one
    transaction; decide this share of its events first.
    """

    now: int = 0
    accepted: Sequence[Change] = ()
    inserted: Sequence[LeadRow] = ()
    updated: Sequence[LeadRow] = ()
    merges: Sequence[Merge] = ()
    redelivered: Sequence[Change] = ()
    duplicates: Sequence[Event] = ()
    reused: Sequence[Reused] = ()
    signal_types: frozenset[str] = frozenset()
    refused: Sequence[Refused] = ()
    suppressed: Sequence[Event] = ()
    erasures: Sequence[Erasure] = ()
    undone: Undone | None = None
    dead: Sequence[DeadRecord] = ()
    oversize: Sequence[Oversize] = ()
    cut: float = 0

    @property
    def bytes(self) -> int:
        """The approximate size of the records about the changes."""
        return sum(change.bytes for change in (*self.accepted, *self.redelivered))
