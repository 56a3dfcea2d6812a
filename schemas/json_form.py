"""Converts a lead event in JSON to a record of its schema, and reports every wrong field at once.

``{"type": "form_submitted", "envelope": {...}, "identifiers": {...}, "form_id": "demo", ...}``

The object has the fields of the schema and ``"type"``, the name of the event type. A time is an RFC 3339 string or a
number of microseconds since 1970. ``null`` means the field's default. A field that the schema does not have is an
error: a misspelt field is never lost silently. Messages never contain a value of the event.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from difflib import get_close_matches
from typing import Any

import orjson

from infra.clock import from_datetime
from infra.outcomes import Dead, Problem, Reason
from schemas.registry import RecordType, Registry, registry

_LONG_BOUND = 2**63

# (JSON value, its path, problems found so far) -> the record's value. Appends to the problems when the value is wrong.
Converter = Callable[[Any, str, list[Problem]], Any]


def from_json(payload: bytes | dict[str, Any], schemas: Registry | None = None) -> tuple[str, dict[str, Any] | Dead]:
    """Convert one event from JSON.

    Args:
        payload: the JSON text, or the object parsed from it.
        schemas: the registry to use; by default that of this installation.

    Returns:
        The event type ("" when it is unknown), and either the record with every field or Dead with every problem.

    """
    if isinstance(payload, dict):
        document: Any = payload
    else:
        try:
            document = orjson.loads(payload)
        except ValueError as error:
            return "", Dead(Reason.NOT_JSON, (Problem("", f"not JSON: {error}"),))
    if not isinstance(document, dict):
        return "", Dead(Reason.INVALID_FIELD, (Problem("", "an event must be a JSON object"),))
    events = (schemas or registry()).events
    name = document.get("type")
    if not isinstance(name, str) or name not in events:
        near = get_close_matches(name, events, 1) if isinstance(name, str) else []
        hint = f"did you mean {near[0]}? " if near else ""
        problem = "the event type is missing" if name is None else "no such event type"
        message = f"{problem}; {hint}use one of {', '.join(events)}"
        return "", Dead(Reason.UNKNOWN_EVENT_TYPE, (Problem("/type", message),))
    problems: list[Problem] = []
    record = _event_converter(events[name])({k: v for k, v in document.items() if k != "type"}, "", problems)
    if problems:
        return name, Dead(Reason.INVALID_FIELD, tuple(problems))
    return name, record


_event_converters: dict[int, Converter] = {}


def _event_converter(kind: RecordType) -> Converter:
    # Keyed by the identity of the schema: a RecordType holds dicts and cannot be hashed.
    key = id(kind.full_schema)
    if key not in _event_converters:
        _event_converters[key] = _record(kind.full_schema)
    return _event_converters[key]


def _record(schema: dict[str, Any]) -> Converter:
    fields = [(f["name"], _converter_for(f["type"]), "default" in f, f.get("default")) for f in schema["fields"]]
    names = frozenset(field[0] for field in fields)
    nested = {f["name"]: frozenset(g["name"] for g in f["type"]["fields"]) for f in schema["fields"] if _is_record(f)}

    def convert(value: Any, path: str, problems: list[Problem]) -> Any:
        if not isinstance(value, dict):
            problems.append(Problem(path, "must be an object"))
            return None
        record: dict[str, Any] = {}
        for name, convert_field, optional, default in fields:
            item = value.get(name)
            if item is not None:
                record[name] = convert_field(item, f"{path}/{name}", problems)
            elif optional:
                record[name] = default.copy() if isinstance(default, dict | list) else default
            else:
                problems.append(Problem(f"{path}/{name}", "is required but missing"))
        if not names.issuperset(value):
            unknown = (name for name in value if name not in names)
            problems += [Problem(f"{path}/{name}", _no_such_field(name, names, nested)) for name in unknown]
        return record

    return convert


def _is_record(field: dict[str, Any]) -> bool:
    return isinstance(field["type"], dict) and field["type"].get("type") == "record"


def _no_such_field(name: str, names: frozenset[str], nested: dict[str, frozenset[str]]) -> str:
    paths = {known: f"/{known}" for known in names}
    for outer, fields in nested.items():
        paths |= {known: f"/{outer}/{known}" for known in fields}
    near = get_close_matches(name, paths, 1)
    return "no such field" + (f"; did you mean {paths[near[0]]}?" if near else "")


def _converter_for(schema: Any) -> Converter:
    if isinstance(schema, list):
        return _converter_for(next(branch for branch in schema if branch != "null"))
    if isinstance(schema, dict):
        if schema.get("logicalType") == "timestamp-micros":
            return _time
        if build := _COMPOUND.get(schema["type"]):
            return build(schema)
        return _converter_for(schema["type"])
    return _PRIMITIVES[schema]


def _map(convert_item: Converter) -> Converter:
    def convert(value: Any, path: str, problems: list[Problem]) -> Any:
        if not isinstance(value, dict):
            problems.append(Problem(path, "must be an object of strings"))
            return None
        return {key: convert_item(item, f"{path}/{key}", problems) for key, item in value.items()}

    return convert


def _array(convert_item: Converter) -> Converter:
    def convert(value: Any, path: str, problems: list[Problem]) -> Any:
        if not isinstance(value, list):
            problems.append(Problem(path, "must be an array of strings"))
            return None
        return [convert_item(item, f"{path}/{index}", problems) for index, item in enumerate(value)]

    return convert


def _string(value: Any, path: str, problems: list[Problem]) -> Any:
    if not isinstance(value, str):
        problems.append(Problem(path, f"must be a string, not {_json_type(value)}"))
    return value


def _long(value: Any, path: str, problems: list[Problem]) -> Any:
    if isinstance(value, bool) or not isinstance(value, int):
        problems.append(Problem(path, f"must be an integer, not {_json_type(value)}"))
    elif not -_LONG_BOUND <= value < _LONG_BOUND:
        problems.append(Problem(path, "must fit into 64 bits"))
    return value


def _double(value: Any, path: str, problems: list[Problem]) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        problems.append(Problem(path, f"must be a number, not {_json_type(value)}"))
        return value
    return float(value)


def _boolean(value: Any, path: str, problems: list[Problem]) -> Any:
    if not isinstance(value, bool):
        problems.append(Problem(path, f"must be true or false, not {_json_type(value)}"))
    return value


def _time(value: Any, path: str, problems: list[Problem]) -> Any:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LONG_BOUND:
        return value
    if isinstance(value, str):
        try:
            at = datetime.fromisoformat(value)
            if at.tzinfo is not None:
                return from_datetime(at)
        except (ValueError, OverflowError):
            pass
    message = "must be an RFC 3339 time with a time zone, such as 2026-01-31T12:00:00Z, or microseconds since 1970"
    problems.append(Problem(path, message))
    return None


_COMPOUND: dict[str, Callable[[dict[str, Any]], Converter]] = {
    "record": _record,
    "map": lambda schema: _map(_converter_for(schema["values"])),
    "array": lambda schema: _array(_converter_for(schema["items"])),
}
_PRIMITIVES: dict[str, Converter] = {
    "string": _string,
    "long": _long,
    "int": _long,
    "double": _double,
    "boolean": _boolean,
}


def _json_type(value: Any) -> str:
    names = {
        dict: "an object",
        list: "an array",
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a decimal number",
    }
    return names.get(type(value), "null")
