"""Reads the lead of a ``campaign_signal`` or an ``enrichment_request``: JSON of the fields that have a value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any
from uuid import UUID

import orjson

from schemas.registry import registry

_LONG_BOUND = 2**63


def parse_lead(text: str) -> Mapping[str, Any]:
    """Return the lead with every field of lead.avsc; a field that ``text`` does not have has its default.

    The caller must not change the result: defaults are shared between calls.

    Raises:
        ValueError: ``text`` is not a JSON object with ``lead_id`` (a UUID in its usual form), ``tenant`` and
            ``version``, or a field has another type than in lead.avsc. The message contains no value.

    """
    known = orjson.loads(text)
    if not isinstance(known, dict) or not known.keys() >= {"lead_id", "tenant", "version"}:
        raise ValueError("the lead must be a JSON object with lead_id, tenant and version")
    fields = _fields()
    for name, value in known.items():
        if (valid := fields.get(name)) is not None and not valid[1](value):
            raise ValueError(f"the lead's field {name} has another type than in lead.avsc")
    if not is_uuid(known["lead_id"]):
        raise ValueError("the lead's field lead_id is not a UUID")
    return _defaults() | known


def is_uuid(text: str) -> bool:
    """Return whether ``text`` is a UUID in its usual form: 36 characters, lower case, with hyphens."""
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


@cache
def _defaults() -> dict[str, Any]:
    return {name: default for name, (default, _) in _fields().items()}


@cache
def _fields() -> dict[str, tuple[Any, Callable[[Any], bool]]]:
    """Return for each field of lead.avsc its default and the check of a value."""
    return {
        field["name"]: (field.get("default"), _CHECKS[_kind(field["type"])])
        for field in registry().lead.source["fields"]
    }


def _kind(schema: Any) -> str:
    if isinstance(schema, list):
        return "optional " + _kind(next(branch for branch in schema if branch != "null"))
    return schema if isinstance(schema, str) else str(schema["type"])


def _is_long(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -_LONG_BOUND <= value < _LONG_BOUND


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_CHECKS: Mapping[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "long": _is_long,
    "optional long": lambda value: value is None or _is_long(value),
    "optional double": lambda value: value is None or _is_number(value),
    "map": lambda value: isinstance(value, dict) and all(isinstance(item, str) for item in value.values()),
}
