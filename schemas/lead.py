"""The lead as the pipeline's records carry it: JSON of the fields that are known."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import orjson

from schemas.registry import registry


def whole_lead(text: str) -> Mapping[str, Any]:
    """Return the lead with every field of lead.avsc, the default where it is unknown; not to be changed.

    Raises:
        ValueError: it is no JSON object, or has no lead_id, tenant or version.

    """
    known = orjson.loads(text)
    if not isinstance(known, dict) or not known.keys() >= {"lead_id", "tenant", "version"}:
        raise ValueError("the lead is no JSON object with a lead_id, a tenant and a version")
    return _unknown() | known


@cache
def _unknown() -> dict[str, Any]:
    return {field["name"]: field.get("default") for field in registry().lead.source["fields"]}
