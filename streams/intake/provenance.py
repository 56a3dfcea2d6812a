"""Reads stored provenance: who said each value of a lead."""

from __future__ import annotations

from typing import Any

import orjson

from streams.intake.merge import FORMER_CRM_USER, RANKS, REPORTING


def stored_provenance(text: str) -> dict[str, Any]:
    """Return a stored provenance, with the stamps of a CRM user as they are written today."""
    found: dict[str, Any] = orjson.loads(text)
    if f"[{FORMER_CRM_USER}," in text:
        for stamp in found.values():
            if isinstance(stamp, list) and stamp[0] == FORMER_CRM_USER:  # else hidden values
                stamp[0] = RANKS[REPORTING]
    return found


def stored_snapshot(text: str) -> dict[str, Any]:
    """Return a stored snapshot of a lead: its attributes, its provenance, and when it was created, if that is known."""
    found: dict[str, Any] = orjson.loads(text)
    return found | {"provenance": stored_provenance(orjson.dumps(found["provenance"]).decode())}
