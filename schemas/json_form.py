"""Converts a lead event in JSON to a record of its schema, and reports every wrong field at once.

``{"type": "form_submitted", "envelope": {...}, "identifiers": {...}, "form_id": "demo", ...}``

The object has the fields of the schema and ``"type"``, the name of the event type. A time is an RFC 3339 string or a
number of microseconds since 1970. ``null`` means the field's default. A field that the schema does not have is an
error: a misspelt field is never lost silently. Messages never contain a value of the event.

Guarantees: the work is linear in the size of the event, whatever it holds. An object with too many unknown fields, or a
map with too many keys, is one problem; only the first unknown fields get a suggestion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from difflib import get_close_matches
from typing import Any

import orjson

from infra.clock import from_datetime
from infra.outcomes import Dead, Problem, Reason
from schemas.registry import RecordType, Registry, registry

_LONG_BOUND = 2**63
_MAX_UNKNOWN = 50  # unknown fields of one object; more are reported as one problem
_MAX_KEYS = 200  # of one map, as in schemas.rules, which checks maps of events in Avro too
_MAX_HINTS = 3  # unknown fields of one object that get a suggestion: finding the nearest name takes about 0.1 ms
_MAX_HINTED = 40  # characters of a name that gets a suggestion
_MAX_TIME = 64  # characters of a time; the longest valid one has half of that

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
        near = _nearest(name, events) if isinstance(name, str) else ""
        hint = f"did you mean {near}? " if near else ""
        problem = "the event type is missing" if name is None else "no such event type"
        message = f"{problem}; {hint}use one of {', '.join(events)}"
        return "", Dead(Reason.UNKNOWN_EVENT_TYPE, (Problem("/type", message),))
    problems: list[Problem] = []
    record = _event_converter(events[name])(document, "", problems)
    if problems:
        return name, Dead(Reason.INVALID_FIELD, tuple(problems))
    return name, record


_event_converters: dict[int, Converter] = {}


def _event_converter(kind: RecordType) -> Converter:
    # Keyed by the identity of the schema: a RecordType holds dicts and cannot be hashed.
    key = id(kind.full_schema)
    if key not in _event_converters:
        _event_converters[key] = _record(kind.full_schema, also=frozenset({"type"}))
    return _event_converters[key]


def _record(schema: dict[str, Any], also: frozenset[str] = frozenset()) -> Converter:
    """Return the converter of a record; ``also`` are names that it allows beside its fields, and leaves out."""
    fields = [(f["name"], _converter_for(f["type"]), "default" in f, f.get("default")) for f in schema["fields"]]
    names = frozenset(field[0] for field in fields) | also
    paths = _paths(schema)

    def convert(value: Any, path: str, problems: list[Problem]) -> Any:
        if not isinstance(value, dict):
            problems.append(Problem(path, "must be an object"))
            return None
        # Counted without a look at each of them, of which there may be a million.
        if len(value) > _MAX_UNKNOWN and (count := len(value) - sum(map(value.__contains__, names))) > _MAX_UNKNOWN:
            message = f"{count} fields are not in the schema: send only the fields of GET /v1/schemas/{{type}}"
            problems.append(Problem(path, message))
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
            problems += _unknown(value, path, names, paths)
        return record

    return convert


def _paths(schema: dict[str, Any]) -> dict[str, str]:
    """Return the path of every field of a record and of its records, by name."""
    own = {f["name"]: f"/{f['name']}" for f in schema["fields"]}
    records = [f for f in schema["fields"] if isinstance(f["type"], dict) and f["type"].get("type") == "record"]
    return own | {g["name"]: f"/{f['name']}/{g['name']}" for f in records for g in f["type"]["fields"]}


def _unknown(value: dict[str, Any], path: str, names: frozenset[str], paths: dict[str, str]) -> Iterator[Problem]:
    """Yield a problem for each field that is not in ``names``; the first ones get a suggestion."""
    for number, name in enumerate(name for name in value if name not in names):
        near = _nearest(name, paths) if number < _MAX_HINTS else ""
        yield Problem(f"{path}/{name}", "no such field" + (f"; did you mean {paths[near]}?" if near else ""))


def _nearest(name: str, names: Iterable[str]) -> str:
    """Return the one of ``names`` that is most similar to ``name``, or "" if none is or ``name`` is long."""
    near = get_close_matches(name, names, 1) if len(name) <= _MAX_HINTED else []
    return near[0] if near else ""


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
        if len(value) > _MAX_KEYS:
            problems.append(Problem(path, f"must not have more than {_MAX_KEYS} keys"))
            return None
        return {key: convert_item(item, f"{path}/{key}", problems) for key, item in value.items()}

    return convert


def _array(convert_item: Converter) -> Converter:
    def convert(value: Any, path: str, problems: list[Problem]) -> Any:
        if not isinstance(value, list):
            problems.append(Problem(path, "must be an array of strings"))
            return None
        if len(value) > _MAX_KEYS:
            problems.append(Problem(path, f"must not have more than {_MAX_KEYS} items"))
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
    if isinstance(value, str) and len(value) <= _MAX_TIME:
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
