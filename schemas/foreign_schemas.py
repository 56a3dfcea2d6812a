"""Writer schemas of other registries: checks them before they are used, and converts the units of their times.

Guarantees: a schema that passes can be used to read any bytes in bounded time and memory. A time is converted to
microseconds, never reinterpreted: ``timestamp-millis``, ``timestamp-nanos`` and ``date`` are scaled, a plain ``long``
is in microseconds, and every other logical type that differs from ours is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field
from typing import Any, cast

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
_MAX_NAMES = 200  # characters
# All logical types of Avro that change what a value means. Others are ignored, as Avro's specification demands.
_MEANINGFUL = frozenset({*_CONVERSIONS, _OURS, "decimal", "duration", "time-millis", "time-micros"}) | {
    f"local-timestamp-{unit}" for unit in ("millis", "micros", "nanos")
}
_NAMED = frozenset({"record", "error", "enum", "fixed"})
_PRIMITIVES = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})

Path = tuple[str, ...]


class ForeignSchemaError(ValueError):
    """The schema cannot be used; the message says why and contains nothing of a record."""


@dataclass(frozen=True, slots=True)
class TimeConversions:
    """What to change in records of a writer schema, by path.

    ``by_path``: the conversions of times in other units to microseconds. ``defaults``: the values of fields that the
    writer may leave null and the reader may not.
    """

    by_path: Mapping[Path, Callable[[int], int]]
    defaults: Mapping[Path, Any] = field(default_factory=dict)

    def apply(self, record: dict[str, Any]) -> None:
        """Change a record that was read, in place."""
        for path, default in self.defaults.items():
            holder = _holder(record, path)
            if holder[path[-1]] is None:
                holder[path[-1]] = copy(default)
        for path, convert in self.by_path.items():
            holder = _holder(record, path)
            if isinstance(value := holder[path[-1]], int):
                holder[path[-1]] = convert(value)


def _holder(record: dict[str, Any], path: Path) -> dict[str, Any]:
    holder: Any = record
    for name in path[:-1]:
        holder = holder[name]
    return cast("dict[str, Any]", holder)


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
        name = node.get("name")
        if not isinstance(name, str):
            raise ForeignSchemaError("a named type has no name")
        own = str(node.get("namespace") or (name.rpartition(".")[0] if "." in name else namespace))
        full = _full_name(name, own)
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


def time_conversions(writer: dict[str, Any], reader: dict[str, Any]) -> TimeConversions:
    """Return the conversions from ``writer`` to ``reader``, both with logical types, for a checked ``writer``.

    Raises:
        ForeignSchemaError: a field has a logical type that cannot be converted.

    """
    return TimeConversions(dict(_conversions(writer, reader, (), _definitions(writer))))


def nullable_reader(writer: dict[str, Any], reader: dict[str, Any]) -> tuple[dict[str, Any], dict[Path, Any]]:
    """Return ``reader`` with null permitted where a checked ``writer`` may write it and ``reader`` has a default.

    Returns:
        The schema to read with, and the default of each such field: null means the default, as in JSON.

    """
    defaults: dict[Path, Any] = {}
    return _nullable(writer, reader, (), _definitions(writer), defaults), defaults


def _nullable(
    writer: dict[str, Any], reader: dict[str, Any], path: Path, named: Mapping[str, Any], defaults: dict[Path, Any]
) -> dict[str, Any]:
    theirs = {own.get("name"): [_resolved(each, named) for each in _branches(own["type"])] for own in writer["fields"]}
    fields: list[dict[str, Any]] = []
    for own in reader["fields"]:
        branches, place = theirs.get(own["name"], []), (*path, str(own["name"]))
        records = [branch for branch in branches if _is_record(branch)]
        if _is_record(own["type"]) and records:
            fields.append(own | {"type": _nullable(records[0], own["type"], place, named, defaults)})
        elif "null" in branches and "default" in own and not isinstance(own["type"], list):
            defaults[place] = own["default"]
            fields.append(own | {"type": [own["type"], "null"]})
        else:
            fields.append(own)
    return reader | {"fields": fields}


def _conversions(
    writer: dict[str, Any], reader: dict[str, Any], path: Path, named: Mapping[str, Any]
) -> Iterator[tuple[Path, Callable[[int], int]]]:
    ours = {own["name"]: own["type"] for own in reader["fields"]}
    for own in writer["fields"]:
        if (wanted := ours.get(own.get("name"))) is None:
            continue  # a field that is not read
        place = (*path, str(own["name"]))
        branches = [_resolved(branch, named) for branch in _branches(own["type"])]
        if _is_record(wanted):
            for branch in branches:
                if _is_record(branch):
                    yield from _conversions(branch, wanted, place, named)
            continue
        unit = _unit(wanted)
        units = {_unit(branch) or unit for branch in branches if branch != "null"} & (_MEANINGFUL | {unit})
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


def _resolved(node: Any, named: Mapping[str, Any]) -> Any:
    if isinstance(node, str) and node not in _PRIMITIVES:
        return named.get(node.rpartition(".")[2], node)
    return node


def _definitions(node: Any) -> dict[str, Any]:
    """Return the named types of a schema by their names without namespace."""
    found: dict[str, Any] = {}
    if isinstance(node, list):
        for item in node:
            found |= _definitions(item)
    elif isinstance(node, dict):
        if isinstance(node.get("type"), str) and node["type"] in _NAMED and isinstance(node.get("name"), str):
            found[node["name"].rpartition(".")[2]] = node
        for key in ("type", "items", "values", "fields"):
            if key in node:
                found |= _definitions(node[key])
    return found
