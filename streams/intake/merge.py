"""Stage 5 of 6: one merge rule for everything that changes a lead.

Each field of a lead keeps its value together with its stamp: (authority, occurred_at, event_id). A value replaces
another exactly when its stamp is greater. Stamps are totally ordered and each event has its own, so merging is a
maximum: any order and any repetition of the same events gives the same lead, and so does merging two leads.

Authority goes before time: a value from the person outranks one from a CRM user, that one from an app, that one from an
enrichment provider. The first and the last touch are the earliest and the latest event of a person or an app.

``lead_erased`` removes every value that is not later than it, and from then on such values are refused. A removed value
may have outranked a later one of less authority: those are stored too, hidden, at most one for each lesser authority,
and an erasure restores them. A lead stores its first and its last touch only: a late erasure needs all its ``touches``
to find the first after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from schemas.rules import e164
from streams.intake.event import Event

RANKS = {"enrichment": 1, "app": 2, "crm_user": 3, "person": 4}
MAPS = frozenset({"consent", "crm_ids", "custom"})
ERASURE = "lead_erased"
_ERASED = "_erased"
# In ``provenance``: field -> [[rank, occurred_at, event_id, value], ...], falling rank, rising time.
_HIDDEN = "_hidden"
TOUCHING = frozenset({"app", "person"})  # the authorities whose events are touches
_IDENTIFIERS = frozenset({"external_id", "email", "phone"})  # identities that are also fields of the lead

Stamp = list[Any]  # [rank, occurred_at, event_id]: a list, as JSON gives it back
Touch = tuple[int, str, str]  # occurred_at, event_id, source


@dataclass(slots=True)
class Lead:
    """A lead's working copy within one transaction: ``attributes`` by field, ``provenance`` by field or map key."""

    lead_id: str
    tenant: str
    version: int = 0
    created_at: int = 0
    updated_at: int = 0
    merged_into: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)  # field -> Stamp
    json: str = ""  # ``attributes`` as JSON, after the last event
    touches: list[Touch] | None = field(default=None, compare=False)  # all of them; None: not looked up

    @property
    def erased_at(self) -> int | None:
        """When its newest erasure occurred; None: never. It may have new values since."""
        erased = self.provenance.get(_ERASED)
        return erased[1] if erased else None


def merge(lead: Lead, event: Event) -> dict[str, Any]:
    """Merge ``event`` into ``lead`` and return what changed: field, or ``map.key``, to its new value.

    Where ``event`` is an erasure, ``lead.touches`` has to be all of them.
    """
    stamp = [RANKS[event.type.authority], event.occurred_at, event.event_id]
    changes: dict[str, Any] = {}
    if event.type.name == ERASURE:
        _erase(lead, stamp, changes)
    erased = lead.provenance.get(_ERASED)
    if erased is not None and event.occurred_at <= erased[1]:
        return changes
    changes |= {name: value for name, value in _fields(event) if _set_if_greater(lead, name, stamp, value)}
    if event.type.authority in TOUCHING:
        _touch(lead, event.occurred_at, event.source, event.event_id)
    return changes


def absorb(survivor: Lead, loser: Lead) -> None:
    """Merge ``loser``'s values into ``survivor`` by the same rule; ``loser`` itself does not change.

    Where one of them was ever erased, ``touches`` of both have to be all of them.
    """
    erased = loser.provenance.get(_ERASED)
    if erased:
        _erase(survivor, erased, {})
    limit = survivor.provenance.get(_ERASED, (0, -1))[1]
    for name, stamp in loser.provenance.items():
        if name not in (_ERASED, _HIDDEN) and stamp[1] > limit:
            if name in ("first_touch", "last_touch"):
                _touch(survivor, stamp[1], loser.attributes[name + "_source"], stamp[2])
            else:
                _set_if_greater(survivor, name, stamp, _get(loser.attributes, name))
    _restore(survivor, loser.provenance.get(_HIDDEN, {}), loser.touches or (), limit)
    survivor.created_at = min(survivor.created_at or loser.created_at, loser.created_at)


def _fields(event: Event) -> list[tuple[str, Any]]:
    """Return the event's values of the lead's fields; an empty value is none."""
    record, kind = event.record, event.type
    found: list[tuple[str, Any]] = []
    for _, identity, value in event.identities:
        if identity in _IDENTIFIERS:
            found.append((identity, value))
        elif identity.startswith("crm:"):
            found.append((f"crm_ids.{identity[4:]}", value))
    if (phone := record["identifiers"]["phone"]) and not e164(phone):
        found.append(("phone", phone.strip()))  # no identity, but still of use to a reader
    for name, target in kind.lead_fields.items():
        value = record[name]
        if value == "" or value is None:
            continue
        if target in MAPS:
            found += [(f"{target}.{key}", item) for key, item in value.items()]
        else:
            found.append((target, value))
    if "consent" in kind.lead_maps:
        purpose, status = kind.lead_maps["consent"]
        found.append((f"consent.{record[purpose]}", record[status]))
    return found


def _set_if_greater(lead: Lead, name: str, stamp: Stamp, value: Any) -> bool:
    """Set the field if ``stamp`` is greater than the stamp of its value; return whether the value changes."""
    provenance, attributes = lead.provenance, lead.attributes
    had = provenance.get(name)
    if had is None:
        provenance[name] = stamp
        return _put(attributes, name, value)
    if had < stamp:
        if had[1] > stamp[1] or _HIDDEN in provenance:
            _hide(provenance, name, [*had, _get(attributes, name)], stamp[1])
        provenance[name] = stamp
        return _put(attributes, name, value)
    if stamp[1] > had[1]:
        _hide(provenance, name, [*stamp, value], had[1])
    return False


def _hide(provenance: dict[str, Any], name: str, entry: list[Any], after: int) -> None:
    """Store ``entry`` (stamp and value) among the field's hidden ones, and drop those that can never be restored.

    An entry can be restored only if it is later than ``after`` (the time of the visible value) and later than every
    entry of higher authority.
    """
    hidden = provenance.setdefault(_HIDDEN, {})
    kept: list[list[Any]] = []
    for one in sorted([*hidden.pop(name, ()), entry], key=lambda one: one[:3], reverse=True):
        if one[1] > after:
            kept.append(one)
            after = one[1]
    if kept:
        hidden[name] = kept
    if not hidden:
        del provenance[_HIDDEN]


def _put(attributes: dict[str, Any], name: str, value: Any) -> bool:
    """Set a field or a map's key; return whether that is a change."""
    top, _, key = name.partition(".")
    if not key:
        if attributes.get(name) == value:
            return False
        attributes[name] = value
        return True
    inner = attributes.setdefault(top, {})
    if inner.get(key) == value:
        return False
    inner[key] = value
    return True


def _get(attributes: dict[str, Any], name: str) -> Any:
    top, _, key = name.partition(".")
    return attributes[top][key] if key else attributes[top]


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


def _erase(lead: Lead, stamp: Stamp, changes: dict[str, Any]) -> None:
    had = lead.provenance.get(_ERASED)
    if had is not None and had >= stamp:
        return
    hidden = lead.provenance.pop(_HIDDEN, {})
    for name, old in list(lead.provenance.items()):
        if old[1] > stamp[1]:
            continue
        del lead.provenance[name]
        if name in ("first_touch", "last_touch"):
            lead.attributes.pop(name + "_at")
            lead.attributes.pop(name + "_source")
        elif name != _ERASED:
            _remove(lead.attributes, name)
            changes[name] = None
    lead.provenance[_ERASED] = stamp
    changes |= _restore(lead, hidden, lead.touches or (), stamp[1])


def _restore(lead: Lead, hidden: Mapping[str, list[list[Any]]], touches: Sequence[Touch], after: int) -> dict[str, Any]:
    """Merge the hidden values and the touches that are later than ``after``; return the fields that this changes."""
    for at, event_id, source in [touch for touch in touches if touch[0] > after]:
        _touch(lead, at, source, event_id)
    return {
        name: value
        for name, many in hidden.items()
        for *stamp, value in many
        if stamp[1] > after and _set_if_greater(lead, name, stamp, value)
    }


def _remove(attributes: dict[str, Any], name: str) -> None:
    top, _, key = name.partition(".")
    if key:
        del attributes[top][key]
    if not key or not attributes[top]:
        del attributes[top]
