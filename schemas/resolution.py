"""Resolves a record that was read with another registry's schema to the current schema of its type.

It accepts what Avro's schema resolution accepts, and what upstream generators write besides: the symbol of an enum as a
string, and null as absent (the default of a field; no entry in a map or an array).

Source: Avro 1.12 specification, "Schema Resolution".
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

_INTEGERS = frozenset({"int", "long"})
_FLOATS = frozenset({"float", "double"})
_ABSENT = object()


class UnresolvableError(ValueError):
    """A field is missing or has another type. ``path``: of the field, such as ``/identifiers/email``."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


def resolve(value: Any, wanted: Any, path: str = "") -> Any:
    """Return ``value`` as a value of the type ``wanted``.

    Raises:
        UnresolvableError: it has another type, or a field without a default is missing.

    """
    if isinstance(wanted, list):  # null and another type
        other = next(branch for branch in wanted if branch != "null")
        return None if value is None and "null" in wanted else resolve(value, other, path)
    if isinstance(wanted, str):
        return _primitive(value, wanted, path)
    kind = wanted["type"]
    if kind == "record" and isinstance(value, dict):
        return {own["name"]: _field(value.get(own["name"], _ABSENT), own, path) for own in wanted["fields"]}
    if kind == "map" and isinstance(value, dict):
        items = wanted["values"]
        return {key: resolve(item, items, path) for key, item in value.items() if item is not None}
    if kind == "array" and isinstance(value, list):
        return [resolve(item, wanted["items"], path) for item in value if item is not None]
    if kind in ("record", "map", "array"):
        raise UnresolvableError(path)
    return resolve(value, kind, path)


def _field(value: Any, own: dict[str, Any], path: str) -> Any:
    if value is None or value is _ABSENT:
        if "default" in own:
            return deepcopy(own["default"])
        if value is _ABSENT:
            raise UnresolvableError(f"{path}/{own['name']}")
    return resolve(value, own["type"], f"{path}/{own['name']}")


def _primitive(value: Any, wanted: str, path: str) -> Any:
    if wanted == "string":
        if isinstance(value, str):
            return value
        if isinstance(value, bytes):
            return value.decode()
    elif wanted == "boolean":
        if isinstance(value, bool):
            return value
    elif wanted in _INTEGERS:
        if type(value) is int:
            return value
    elif wanted in _FLOATS and type(value) in (int, float):
        return float(value)
    raise UnresolvableError(path)
