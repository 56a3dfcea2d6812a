"""Writer schemas of other registries: checks them before they are used, and converts the units of their times.

Guarantees: a schema that passes can be used to read any bytes in bounded time and memory. A time is converted to
microseconds, never reinterpreted: ``timestamp-millis``, ``timestamp-nanos`` and ``date`` are scaled, a plain ``long``
is in microseconds, and every other logical type that differs from ours is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

_MAX_SCHEMA = 1 << 17  # characters
_MAX_FIXED = 1 << 20  # bytes
_MAX_NODES = 2_000  # types of a schema
_MAX_EMPTY = 64  # fields of one record that take no bytes
_MAX_DEPTH = 32
_OURS = "timestamp-micros"
_DAY_US = 86_400_000_000
# Logical type -> conversion to microseconds since 1970.
_CONVERSIONS: Mapping[str, Callable[[int], int]] = {
    "timestamp-millis": lambda value: value * 1000,
    "timestamp-nanos": lambda value: value // 1000,
    "date": lambda value: value * _DAY_US,
}
_MAX_LONG = (1 << 63) - 1
_MAX_NAMES = 200  # characters
# All logical types of Avro that change what a value means. Others are ignored, as Avro's specification demands.
_MEANINGFUL = frozenset({*_CONVERSIONS, _OURS, "decimal", "duration", "time-millis", "time-micros"}) | {
    f"local-timestamp-{unit}" for unit in ("millis", "micros", "nanos")
}
_NAMED = frozenset({"record", "error", "enum", "fixed"})
_PRIMITIVES = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})

Path = tuple[str, ...]
_Definition = tuple[Any, str]  # a type, and the namespace around it


class ForeignSchemaError(ValueError):
    """The schema cannot be used; the message says why and contains nothing of a record."""


class InvalidTimeError(ValueError):
    """A time cannot be converted to microseconds. ``path``: of its field."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


Conversions = Mapping[Path, Callable[[int], int]]


def convert_times(record: dict[str, Any], conversions: Conversions) -> None:
    """Convert the times of ``record`` to microseconds, in place. ``conversions``: from :func:`time_conversions`.

    Raises:
        InvalidTimeError: the result is no 64-bit integer.

    """
    for path, convert in conversions.items():
        holder: Any = record
        for name in path[:-1]:
            holder = holder[name]
        value = holder[path[-1]]
        if not isinstance(value, int):
            continue
        if not -_MAX_LONG <= (converted := convert(value)) <= _MAX_LONG:
            raise InvalidTimeError(f"/{'/'.join(path)}")
        holder[path[-1]] = converted


def without_defaults(node: Any) -> Any:
    """Return a copy of a writer's schema without its defaults: reading does not use them, and they may be invalid."""
    if isinstance(node, list):
        return [without_defaults(item) for item in node]
    if isinstance(node, dict):
        return {
            key: without_defaults(value) if key in ("type", "items", "values", "fields") else value
            for key, value in node.items()
            if key != "default"
        }
    return node


def check_foreign_schema(text: str) -> dict[str, Any]:
    """Return the schema in ``text`` (JSON); reading with it is bounded.

    Raises:
        ForeignSchemaError: it is too large, is not a record, is nested too deeply, contains itself, uses an undefined
            name, or has items that take no bytes, so that a few bytes could be billions of items.

    """
    if len(text) > _MAX_SCHEMA:
        raise ForeignSchemaError(f"the schema has more than {_MAX_SCHEMA} characters")
    schema = json.loads(text)
    if not isinstance(schema, dict) or schema.get("type") != "record":
        raise ForeignSchemaError("the schema is not a record")
    _Checker().visit(schema, str(schema.get("namespace", "")), 0)
    return schema


@dataclass(slots=True)
class _Checker:
    defined: dict[str, bool] = field(default_factory=dict)  # full name -> takes at least one byte
    open: set[str] = field(default_factory=set)
    nodes: int = 0

    def visit(self, node: Any, namespace: str, depth: int) -> bool:
        """Check ``node``; return whether each of its values takes at least one byte."""
        self._limit(depth)
        if isinstance(node, list):
            names = [branch for branch in node if isinstance(branch, str)]
            if len(names) != len(set(names)):
                raise ForeignSchemaError("a union has the same type twice")
            for branch in node:
                self.visit(branch, namespace, depth + 1)
            return True
        if isinstance(node, str):
            return self._use(node, namespace)
        if not isinstance(node, dict) or "type" not in node:
            raise ForeignSchemaError("a type must be a name, an object with a type, or a union")
        kind = node["type"]
        if isinstance(kind, str) and kind in _NAMED:
            return self._define(node, namespace, depth)
        if kind in ("array", "map"):
            if not self.visit(node.get("items" if kind == "array" else "values"), namespace, depth + 1):
                raise ForeignSchemaError(f"the items of a type {kind} take no bytes")
            return True
        return self.visit(kind, namespace, depth + 1)

    def _limit(self, depth: int) -> None:
        self.nodes += 1
        if self.nodes > _MAX_NODES:
            raise ForeignSchemaError(f"the schema has more than {_MAX_NODES} types")
        if depth > _MAX_DEPTH:
            raise ForeignSchemaError(f"the schema is nested more than {_MAX_DEPTH} levels deep")

    def _use(self, name: str, namespace: str) -> bool:
        if name in _PRIMITIVES:
            return name != "null"
        full = _full_name(name, namespace)
        full = full if full in self.defined or full in self.open else name
        if full in self.open:
            raise ForeignSchemaError("the schema contains itself")
        if full not in self.defined:
            raise ForeignSchemaError("the schema uses a name that it does not define")
        return self.defined[full]

    def _define(self, node: dict[str, Any], namespace: str, depth: int) -> bool:
        if not isinstance(node.get("name"), str):
            raise ForeignSchemaError("a named type has no name")
        full, own = _names(node, namespace)
        if node["type"] == "enum":
            takes = bool(node.get("symbols"))
        elif node["type"] == "fixed":
            size = node.get("size")
            if type(size) is not int or not 0 < size <= _MAX_FIXED:
                raise ForeignSchemaError("a fixed type needs a size of 1 to 1,048,576 bytes")
            takes = True
        else:
            takes = self._record(node, full, own, depth)
        self.defined[full] = takes
        return takes

    def _record(self, node: dict[str, Any], full: str, namespace: str, depth: int) -> bool:
        fields = node.get("fields")
        if not isinstance(fields, list) or not all(isinstance(own, dict) for own in fields):
            raise ForeignSchemaError("a record has no fields")
        self.open.add(full)
        takes = [self.visit(own.get("type"), namespace, depth + 1) for own in fields]
        self.open.discard(full)
        if not any(takes) or takes.count(False) > _MAX_EMPTY:
            raise ForeignSchemaError("a record takes no bytes, or has many fields that take none")
        return True


def _full_name(name: str, namespace: str) -> str:
    return name if "." in name or not namespace else f"{namespace}.{name}"


def _names(node: Mapping[str, Any], namespace: str) -> tuple[str, str]:
    """Return the full name of a named type, and the namespace of the names in it."""
    name = str(node["name"])
    own = str(node.get("namespace") or (name.rpartition(".")[0] if "." in name else namespace))
    return _full_name(name, own), own


def time_conversions(writer: dict[str, Any], reader: dict[str, Any]) -> Conversions:
    """Return the conversions from ``writer`` to ``reader``, both with logical types, for a checked ``writer``.

    Raises:
        ForeignSchemaError: a field has a logical type that cannot be converted.

    """
    return dict(_conversions(writer, reader, (), "", _definitions(writer, "")))


def _conversions(
    writer: dict[str, Any], reader: dict[str, Any], path: Path, namespace: str, named: Mapping[str, _Definition]
) -> Iterator[tuple[Path, Callable[[int], int]]]:
    ours = {own["name"]: own["type"] for own in reader["fields"]}
    _, inner = _names(writer, namespace)
    for own in writer["fields"]:
        if (wanted := ours.get(own.get("name"))) is None:
            continue  # a field that is not read
        place = (*path, str(own["name"]))
        branches = [_resolved(branch, inner, named) for branch in _branches(own["type"])]
        if _is_record(wanted):
            for branch, outer in branches:
                if _is_record(branch):
                    yield from _conversions(branch, wanted, place, outer, named)
            continue
        if any(isinstance(branch, dict) and branch.get("type") == "fixed" for branch, _ in branches):
            raise ForeignSchemaError(f"/{'/'.join(place)}: a fixed type cannot be converted")
        unit = _unit(wanted)
        units = {_unit(branch) or unit for branch, _ in branches if branch != "null"} & (_MEANINGFUL | {unit})
        if units <= {unit}:
            continue
        if unit != _OURS or len(units) > 1 or not units <= _CONVERSIONS.keys():
            names = ", ".join(sorted(units))[:_MAX_NAMES]
            raise ForeignSchemaError(f"/{'/'.join(place)}: values of the logical type {names} cannot be converted")
        yield place, _CONVERSIONS[units.pop()]


def _branches(node: Any) -> list[Any]:
    return node if isinstance(node, list) else [node]


def _unit(node: Any) -> str:
    """Return the logical type of a type, of a field or of the only branch of a union that has one, or ""."""
    if isinstance(node, list):
        return next((unit for branch in node if (unit := _unit(branch))), "")
    return str(node.get("logicalType") or "") if isinstance(node, dict) else ""


def _is_record(node: Any) -> bool:
    return isinstance(node, dict) and node.get("type") == "record"


def _resolved(node: Any, namespace: str, named: Mapping[str, _Definition]) -> _Definition:
    if isinstance(node, str) and node not in _PRIMITIVES:
        return named.get(_full_name(node, namespace)) or named.get(node) or (node, namespace)
    return node, namespace


def _definitions(node: Any, namespace: str) -> dict[str, _Definition]:
    """Return the named types of a schema by their full names, each with the namespace around it."""
    found: dict[str, _Definition] = {}
    if isinstance(node, list):
        for item in node:
            found |= _definitions(item, namespace)
    elif isinstance(node, dict):
        inner = namespace
        if isinstance(node.get("type"), str) and node["type"] in _NAMED and isinstance(node.get("name"), str):
            full, inner = _names(node, namespace)
            found[full] = node, namespace
        for key in ("type", "items", "values", "fields"):
            if key in node:
                found |= _definitions(node[key], inner)
    return found
