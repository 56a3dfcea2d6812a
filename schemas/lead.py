"""Reads the lead of a ``campaign_signal`` or an ``enrichment_request``: JSON of the fields that have a value."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import orjson

from schemas.registry import registry


def parse_lead(text: str) -> Mapping[str, Any]:
    """Return the lead with every field of lead.avsc; a field that ``text`` does not have has its default.

    The caller must not change the result: defaults are shared between calls.

    Raises:
        ValueError: ``text`` is not a JSON object with ``lead_id``, ``tenant`` and ``version``.

    """
    known = orjson.loads(text)
    if not isinstance(known, dict) or not known.keys() >= {"lead_id", "tenant", "version"}:
        raise ValueError("the lead must be a JSON object with lead_id, tenant and version")
    return _defaults() | known


@cache
def _defaults() -> dict[str, Any]:
    return {field["name"]: field.get("default") for field in registry().lead.source["fields"]}
