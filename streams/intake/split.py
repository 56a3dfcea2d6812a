"""Undoes the merge of two leads: what each of them has afterwards, as a pure function.

The merged lead has what it had before the merge. The survivor keeps everything else that is known: what it had before
its merges, what other leads brought, and everything that was said since, also with an identifier of the merged lead.
Of values of one field, the one with the greatest stamp counts, as in :mod:`streams.intake.merge`. A value that lost
against one of the merged lead counts again: it is in the snapshots before the merges, or in ``LOST``. An identifier
that returns to the merged lead does not stay in the fields of the survivor.

Guarantees: after a merge and its split both leads have the values as if the events since had been the survivor's only,
whatever their order, and in whatever order several merges are undone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from schemas.phones import parse_phone
from streams.intake.merge import HIDDEN, LOST, MAPS, Lead, Touch, absorb, field_of

_Entry = tuple[Any, ...]  # field, rank, time, event_id: who said a value of the field


class PastMerge(NamedTuple):
    """A merge into a survivor. ``survivor``, ``loser``: their snapshots before. ``merged_at``: its key."""

    loser_id: str
    merged_at: int
    survivor: Mapping[str, Any]
    loser: Mapping[str, Any]
    undone: bool = False


class SplitInput(NamedTuple):
    """What is stored about a merge to undo.

    ``merges``: all merges into the survivor, oldest first. ``merge``: the one to undo. ``returning``: the identities
    that return to the merged lead, as (kind, value). ``touches``: the survivor's own, at least the first and the last.
    """

    survivor: Lead
    loser: Lead
    merges: Sequence[PastMerge]
    merge: PastMerge
    returning: frozenset[tuple[str, str]]
    touches: Sequence[Touch] = ()


def split(known: SplitInput, now: int) -> tuple[Lead, Lead, dict[str, Any]]:
    """Return the survivor and the merged lead after the split, and the changed fields of the survivor.

    The leads of ``known`` do not change. The versions of both increase by one.
    """
    survivor, loser, merge = known.survivor, known.loser, known.merge
    live = [one for one in known.merges if not one.undone and one is not merge]
    live_entries = {entry for one in live for entry in _entries(one.loser["provenance"])}
    foreign = set(_entries(loser.provenance))
    undone = {entry for one in known.merges if one.undone for entry in _entries(one.loser["provenance"])}
    before = [one.survivor for one in known.merges]
    kept = set(_entries(merge.survivor["provenance"]))
    current = {"attributes": survivor.attributes, "provenance": survivor.provenance}
    returned = {
        entry for entry, value in _values(current) if entry not in kept and _returns(entry[0], value, known.returning)
    }
    result = Lead(survivor.lead_id, survivor.tenant, survivor.version + 1, 0, now)
    absorb(result, _piece(survivor, current, foreign | returned, known.touches))
    for snapshot in before:
        absorb(result, _piece(survivor, snapshot, (foreign | undone) - live_entries))
    for one in live:
        absorb(result, _piece(survivor, one.loser, set()))
    if live:
        result.provenance[LOST] = survivor.provenance.get(LOST, {})
    result.created_at = _created_at(known, live)
    restored = Lead(loser.lead_id, loser.tenant, loser.version + 1, loser.created_at, now)
    restored.attributes, restored.provenance = loser.attributes, loser.provenance
    for lead in (result, restored):
        lead.json = orjson.dumps(lead.attributes).decode()
    return result, restored, _changes(survivor.attributes, result.attributes)


def _piece(survivor: Lead, snapshot: Mapping[str, Any], without: set[_Entry], touches: Sequence[Touch] = ()) -> Lead:
    """Return a lead with the values of ``snapshot`` that are not in ``without``, to be merged into the result."""
    provenance = snapshot["provenance"]
    found = {name: stamp for name, stamp in provenance.items() if _is_field(name) and (name, *stamp) not in without}
    hidden: dict[str, list[list[Any]]] = {}
    for many in (provenance.get(HIDDEN, {}), provenance.get(LOST, {})):
        for name, entries in many.items():
            hidden.setdefault(name, []).extend(one for one in entries if (name, *one[:3]) not in without)
    piece = Lead(survivor.lead_id, survivor.tenant, created_at=survivor.created_at, touches=list(touches))
    piece.attributes, piece.provenance = snapshot["attributes"], found
    if hidden:
        piece.provenance[HIDDEN] = hidden
    return piece


def _entries(provenance: Mapping[str, Any]) -> Iterator[_Entry]:
    """Yield who said each value that is stored in ``provenance``."""
    for name, stamp in provenance.items():
        if _is_field(name):
            yield (name, *stamp)
    for many in (provenance.get(HIDDEN, {}), provenance.get(LOST, {})):
        for name, entries in many.items():
            yield from ((name, *one[:3]) for one in entries)


def _values(snapshot: Mapping[str, Any]) -> Iterator[tuple[_Entry, Any]]:
    provenance = snapshot["provenance"]
    for name, stamp in provenance.items():
        if _is_field(name):
            yield (name, *stamp), field_of(snapshot["attributes"], name)
    for many in (provenance.get(HIDDEN, {}), provenance.get(LOST, {})):
        for name, entries in many.items():
            yield from (((name, *one[:3]), one[3]) for one in entries)


def _is_field(name: str) -> bool:
    return not name.startswith("_")


def _returns(name: str, value: Any, returning: frozenset[tuple[str, str]]) -> bool:
    """Return whether a value of the lead is an identity that returns to the merged lead."""
    if name in ("email", "external_id"):
        return (name, value) in returning
    if name == "phone":
        return bool(value) and ("phone", parse_phone(value).key) in returning
    kind, _, crm = name.partition(".")
    return kind == "crm_ids" and (f"crm:{crm}", value) in returning


def _created_at(known: SplitInput, live: Sequence[PastMerge]) -> int:
    """Return when the survivor was created, or any lead that is still merged into it."""
    snapshots = [known.merges[0].survivor, *(one.loser for one in live)]
    times: list[int] = [snapshot["created_at"] for snapshot in snapshots if "created_at" in snapshot]
    # Merges that were made before this was stored in snapshots do not have it.
    return min(times) if len(times) == len(snapshots) else known.survivor.created_at


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    one, other = _flat(before), _flat(after)
    return {name: other.get(name) for name in sorted({*one, *other}) if one.get(name) != other.get(name)}


def _flat(attributes: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in attributes.items():
        found |= {f"{name}.{key}": item for key, item in value.items()} if name in MAPS else {name: value}
    # Touches are no values of an event.
    return {name: value for name, value in found.items() if not name.startswith(("first_touch_", "last_touch_"))}
