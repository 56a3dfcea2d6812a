"""``cleared``: an array of an event type that names the fields whose values are removed from the lead.

A name is an own field of the event that merges into the lead, ``<map>.<key>`` for a key of such a map, or ``email`` or
``phone``. An absent, empty or blank value clears nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from infra.outcomes import Problem
from schemas.blanks import is_blank
from schemas.registry import EventType

CLEARED = "cleared"
_IDENTIFIERS = ("email", "phone")  # the identity stays with the lead; only the field of the lead is cleared
_MAX_NAMES = 200
_MAX_KEY = 200  # characters
_MAX_HINT = 100  # characters of a name for which a similar one is looked for


def cleared_field(kind: EventType, name: str) -> str:
    """Return the field of the lead that ``name`` clears, ``map.key`` for a key of a map, or "" for a wrong name."""
    own, in_map, key = name.partition(".")
    if (own in kind.maps) != bool(in_map) or (in_map and not 0 < len(key) <= _MAX_KEY):
        return ""
    if not in_map and own in _IDENTIFIERS:
        return own
    target = kind.lead_fields.get(own, "")
    return f"{target}.{key}" if target and in_map else target


def problems_of_cleared(kind: EventType, record: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield each problem of the names in ``record["cleared"]``, which is an array of strings."""
    names = record[CLEARED]
    if len(names) > _MAX_NAMES:
        yield Problem(f"/{CLEARED}", f"must not name more than {_MAX_NAMES} fields")
        return
    for index, name in enumerate(names):
        path = f"/{CLEARED}/{index}"
        if not cleared_field(kind, name):
            names_there = [field for field in (*kind.lead_fields, *_IDENTIFIERS) if field not in kind.maps]
            near = get_close_matches(name[:_MAX_HINT], names_there, 1)
            hint = (
                f"did you mean {near[0]}?" if near else "use the name of a field, or of a map and its key: custom.key"
            )
            yield Problem(path, f"{kind.name} has no such field to clear; {hint}")
        elif _has_value(record, name):
            yield Problem(path, "this field also has a value in the event: send either the value or the name here")


def _has_value(record: Mapping[str, Any], name: str) -> bool:
    if name in _IDENTIFIERS:
        return bool(record["identifiers"][name])
    own, in_map, key = name.partition(".")
    value = record[own].get(key) if in_map else record[own]
    return value is not None and not (isinstance(value, str) and is_blank(value))
