"""Reads stored provenance: who said each value of a lead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from streams.intake.merge import RANKS, REPORTING, field_of

_VALUES = {"first_touch": "first_touch_source", "last_touch": "last_touch_source"}  # touches have no authority

_FORMER_CRM_USER = 3  # the rank of a CRM user in provenance that was stored before a person had the same


def stored_provenance(text: str) -> dict[str, Any]:
    """Return a stored provenance, with the stamps of a CRM user as they are written today."""
    found: dict[str, Any] = orjson.loads(text)
    if f"[{_FORMER_CRM_USER}," in text:
        for stamp in found.values():
            if isinstance(stamp, list) and stamp[0] == _FORMER_CRM_USER:  # else hidden values
                stamp[0] = RANKS[REPORTING]
    return found


def stored_snapshot(text: str) -> dict[str, Any]:
    """Return a stored snapshot of a lead: its attributes, its provenance, and when it was created, if that is known.

    An erased one is empty.
    """
    found: dict[str, Any] = {"attributes": {}, "provenance": {}} | orjson.loads(text)
    return found | {"provenance": stored_provenance(orjson.dumps(found["provenance"]).decode())}


class SaidBy(NamedTuple):
    """A value of a lead (None: removed) and the event that said it. ``at``: in microseconds since 1970."""

    field: str
    value: Any
    authority: str
    at: int
    event_id: str


def said_by(attributes: Mapping[str, Any], provenance: str) -> list[SaidBy]:
    """Return each value of a stored lead with its event, by field."""
    names = {rank: "person or crm_user" if rank == RANKS[REPORTING] else name for name, rank in RANKS.items()}
    found = [
        SaidBy(name, field_of(attributes, _VALUES.get(name, name)), names.get(stamp[0], f"rank {stamp[0]}"), *stamp[1:])
        for name, stamp in stored_provenance(provenance).items()
        if not name.startswith("_")
    ]
    return sorted(
        (one._replace(authority="") if one.field in _VALUES else one for one in found), key=lambda one: one.field
    )
