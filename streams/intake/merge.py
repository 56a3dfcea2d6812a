"""Stage 5 of 6: merge an event into its lead, by one rule for every event type.

Each field of a lead has a value and the stamp of the event that set it: (rank of its authority, time, event_id). A
value replaces the current one if its stamp is greater. Stamps are totally ordered and each event has its own, so the
result is a maximum: the same events in any order and repetition give the same lead, and so does merging two leads.

Authority precedes time: a person and a CRM user over an app over an enrichment provider; between a person and a CRM
user the later one counts. The time is ``Event.at``: a clock that is ahead of the broker's gains nothing. The first and
the last touch of a lead are the earliest and the latest event with the authority person or app. A tenant's file may
order sources per field: there the position of the event's source replaces its authority (``Event.ranks``); sources that
are not in the order follow, by their authority. The order at the time of an event counts.

- A value that is empty or white space has no effect, in maps too. ``cleared`` names the fields whose values are
  removed: the removal has a stamp like a value.
- A CRM that reports the current value, which an app or a provider has set, has only repeated what it was sent: the
  field keeps its stamp, so its source can change it again. This is the one rule that depends on the order of events: a
  report cannot repeat what comes after it. ``streams.intake.echo`` recognises reports of earlier values.

``lead_erased`` removes every value that occurred at its time or before, and values that old are ignored from then on.
This needs two things that the lead does not show:

- A removed value may have outranked a later value of lower authority, which must then be restored. Such values are
  stored as hidden values, at most one for each lower authority.
- A lead stores only its first and last touch. To find the first touch after an erasure that arrives late, the touches
  of the lead after each erasure (``Lead.touches``) must be looked up.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from unicodedata import normalize

from schemas.blanks import is_blank
from schemas.cleared import CLEARED, cleared_field
from streams.intake.event import ERASURE, Event

RANKS = {"operator": 0, "enrichment": 1, "app": 2, "crm_user": 4, "person": 4}
REPORTING = "crm_user"  # the authority of events that can repeat a value that was sent to the CRM
MAPS = frozenset({"consent", "crm_ids", "custom"})
_ERASED = "_erased"
# Key in ``provenance``: field -> [[rank, occurred_at, event_id, value], ...], in falling rank and rising time.
HIDDEN = "_hidden"
# Key in ``provenance``: like HIDDEN, but values that lost since a merge. If it is undone, they may win.
LOST = "_lost"
TOUCHING = frozenset({"app", "person"})  # the authorities whose events are touches
_IDENTIFIERS = frozenset({"external_id", "email"})  # kinds of identities that are also fields of the lead

Stamp = list[Any]  # [rank, occurred_at, event_id]: a list, because it is stored as JSON
Touch = tuple[int, str, str]  # time, event_id, source


@dataclass(slots=True)
class Lead:
    """The working copy of a lead in one transaction. ``attributes``: by field. ``provenance``: by field or map key."""

    lead_id: str
    tenant: str
    version: int = 0
    created_at: int = 0
    updated_at: int = 0
    merged_into: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)  # field -> Stamp
    json: str = ""  # ``attributes`` as JSON, after the last event
    touches: list[Touch] | None = field(default=None, compare=False)  # that an erasure may restore; None: not looked up
    provenance_bytes: int = field(default=0, compare=False)  # size of the provenance as JSON, approximately

    @property
    def erased_at(self) -> int | None:
        """Time of the lead's latest erasure, or None. The lead may have got values since."""
        erased = self.provenance.get(_ERASED)
        return erased[1] if erased else None


def merge(lead: Lead, event: Event, ignored: Collection[str] = ()) -> dict[str, Any]:
    """Merge ``event`` into ``lead``. If ``event`` is an erasure, ``lead.touches`` must be looked up.

    Args:
        lead: is changed.
        event: an event of the lead.
        ignored: fields of the event that have no effect, from :func:`streams.intake.echo.echoes`.

    Returns:
        The changed fields: name, or ``map.key`` in a map, to its new value (None: removed).

    """
    stamp = [RANKS[event.type.authority], event.at, event.event_id]
    changes: dict[str, Any] = {}
    if event.type.name == ERASURE:
        _erase(lead, stamp, changes)
    erased = lead.provenance.get(_ERASED)
    if erased is not None and event.at <= erased[1]:
        return changes
    reporting, ranks, authority = event.type.authority == REPORTING, event.ranks, stamp
    for name, value in values_of(event):
        if ranks:
            rank = ranks.get(name.partition(".")[0])
            stamp = authority if rank is None else [rank, event.at, event.event_id]
        if name in ignored or (reporting and _repeats(lead, name, stamp, value)):
            continue
        if _set_if_greater(lead, name, stamp, value):
            changes[name] = value
        elif LOST in lead.provenance and lead.provenance[name] is not stamp:
            _hide(lead.provenance, name, [*stamp, value], -1, LOST)
    if event.type.authority in TOUCHING:
        _touch(lead, event.at, event.source, event.event_id)
    return changes


def _repeats(lead: Lead, name: str, stamp: Stamp, value: Any) -> bool:
    """Return whether a CRM reports the value that a source of lower authority has set."""
    current = lead.provenance.get(name)
    return (
        value is not None
        and current is not None
        and current[0] < stamp[0]
        and same_value(field_of(lead.attributes, name), value)
    )


def same_value(ours: Any, reported: Any) -> bool:
    """Return whether a CRM may return ``ours`` as ``reported``: CRMs trim texts and compose their characters."""
    if isinstance(ours, str) and isinstance(reported, str):
        return ours == reported or _trimmed(ours) == _trimmed(reported)
    return bool(ours == reported)


def _trimmed(text: str) -> str:
    return " ".join(normalize("NFC", text).split())


def absorb(survivor: Lead, loser: Lead) -> None:
    """Merge the values of ``loser`` into ``survivor`` by the same rule; ``loser`` does not change.

    If one of them was erased, the ``touches`` of both must be looked up.
    """
    erased = loser.provenance.get(_ERASED)
    if erased:
        _erase(survivor, erased, {})
    limit = survivor.provenance.get(_ERASED, (0, -1))[1]
    for name, stamp in loser.provenance.items():
        if name not in (_ERASED, HIDDEN, LOST) and stamp[1] > limit:
            if name in ("first_touch", "last_touch"):
                _touch(survivor, stamp[1], loser.attributes[name + "_source"], stamp[2])
            else:
                _set_if_greater(survivor, name, stamp, field_of(loser.attributes, name))
    _restore(survivor, loser.provenance.get(HIDDEN, {}), loser.touches or (), limit)
    survivor.created_at = min(survivor.created_at or loser.created_at, loser.created_at)


def values_of(event: Event) -> list[tuple[str, Any]]:
    """Return the values of the event for fields of the lead, as (name, value), without blank ones; None: cleared."""
    kind = event.type
    found: list[tuple[str, Any]] = []
    for _, identity, value in event.identities:
        if identity in _IDENTIFIERS:
            found.append((identity, value))
        elif identity.startswith("crm:"):
            found.append((f"crm_ids.{identity[4:]}", value))
    if event.phone:
        found.append(("phone", event.phone))
    found += _own_values(event)
    record = event.record
    if "consent" in kind.lead_maps:
        purpose, status = kind.lead_maps["consent"]
        found.append((f"consent.{record[purpose]}", record[status]))
    if record.get(CLEARED):
        found += [(cleared_field(kind, name), None) for name in record[CLEARED]]
    return found


def _own_values(event: Event) -> Iterator[tuple[str, Any]]:
    for name, target in event.type.lead_fields.items():
        value = event.record[name]
        if value is None or value == "":
            continue
        if target in MAPS:
            yield from ((f"{target}.{key}", item) for key, item in value.items() if not is_blank(item))
        elif not isinstance(value, str) or not is_blank(value):
            yield target, value


def _set_if_greater(lead: Lead, name: str, stamp: Stamp, value: Any) -> bool:
    """Set a field if ``stamp`` is greater than its current stamp; return whether its value changed."""
    provenance, attributes = lead.provenance, lead.attributes
    current = provenance.get(name)
    if current is None:
        provenance[name] = stamp
        return _put(attributes, name, value)
    if current < stamp:
        if current[1] > stamp[1] or HIDDEN in provenance:
            _hide(provenance, name, [*current, field_of(attributes, name)], stamp[1])
        provenance[name] = stamp
        return _put(attributes, name, value)
    if stamp[1] > current[1]:
        _hide(provenance, name, [*stamp, value], current[1])
    return False


def _hide(provenance: dict[str, Any], name: str, entry: list[Any], after: int, key: str = HIDDEN) -> None:
    """Add ``entry`` (stamp and value) to the hidden values of a field; drop those that can never be restored.

    A hidden value can be restored if it is later than the visible value (at ``after``) and later than every hidden
    value of higher authority.
    """
    hidden = provenance.setdefault(key, {})
    kept: list[list[Any]] = []
    for one in sorted([*hidden.pop(name, ()), entry], key=lambda one: one[:3], reverse=True):
        if one[1] > after:
            kept.append(one)
            after = one[1]
    if kept:
        hidden[name] = kept
    if not hidden:
        del provenance[key]


def _put(attributes: dict[str, Any], name: str, value: Any) -> bool:
    """Set a field, or a key of a map, or remove it if ``value`` is None; return whether its value changed."""
    if field_of(attributes, name) == value:
        return False
    if value is None:
        _remove(attributes, name)
        return True
    top, in_map, key = name.partition(".")  # no field's name has a dot; a key may be anything, also "" or "."
    if in_map:
        attributes.setdefault(top, {})[key] = value
    else:
        attributes[name] = value
    return True


def field_of(attributes: Mapping[str, Any], name: str) -> Any:
    """Return the value of a field, or of a key of a map (``map.key``); None if it is not set."""
    top, in_map, key = name.partition(".")
    return attributes.get(top, {}).get(key) if in_map else attributes.get(name)


def _remove(attributes: dict[str, Any], name: str) -> None:
    """Remove a field, or a key of a map and with its last key the map, if it is set."""
    top, in_map, key = name.partition(".")
    if in_map and top in attributes:
        attributes[top].pop(key, None)
    if not in_map or not attributes.get(top):
        attributes.pop(top, None)


def _touch(lead: Lead, at: int, source: str, event_id: str) -> None:
    if lead.touches is not None:
        lead.touches.append((at, event_id, source))
    stamp: Stamp = [0, at, event_id]
    first = lead.provenance.get("first_touch")
    if first is None or stamp < first:
        lead.provenance["first_touch"] = stamp
        lead.attributes |= {"first_touch_at": at, "first_touch_source": source}
    last = lead.provenance.get("last_touch")
    if last is None or stamp > last:
        lead.provenance["last_touch"] = stamp
        lead.attributes |= {"last_touch_at": at, "last_touch_source": source}


def erase_until(lead: Lead, at: int, event_id: str) -> None:
    """Remove what was said until ``at``, as the erasure ``event_id`` does. ``lead.touches`` must be looked up."""
    _erase(lead, [RANKS["person"], at, event_id], {})


def _erase(lead: Lead, stamp: Stamp, changes: dict[str, Any]) -> None:
    latest = lead.provenance.get(_ERASED)
    if latest is not None and latest >= stamp:
        return
    hidden = lead.provenance.pop(HIDDEN, {})
    lead.provenance.pop(LOST, None)  # a lead that was erased is not split
    for name, old in list(lead.provenance.items()):
        if old[1] > stamp[1]:
            continue
        del lead.provenance[name]
        if name in ("first_touch", "last_touch"):
            lead.attributes.pop(name + "_at")
            lead.attributes.pop(name + "_source")
        elif name != _ERASED:
            if field_of(lead.attributes, name) is not None:
                changes[name] = None
            _remove(lead.attributes, name)
    lead.provenance[_ERASED] = stamp
    changes |= _restore(lead, hidden, lead.touches or (), stamp[1])


def _restore(lead: Lead, hidden: Mapping[str, list[list[Any]]], touches: Sequence[Touch], after: int) -> dict[str, Any]:
    """Merge hidden values and touches that are later than ``after`` into ``lead``; return the changed fields."""
    for at, event_id, source in [touch for touch in touches if touch[0] > after]:
        _touch(lead, at, source, event_id)
    return {
        name: value
        for name, many in hidden.items()
        for *stamp, value in many
        if stamp[1] > after and _set_if_greater(lead, name, stamp, value)
    }
