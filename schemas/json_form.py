"""The JSON form of a lead event: the same fields, plus ``"type"``; every wrong field is named at once.

``{"type": "form_submitted", "envelope": {...}, "identifiers": {...}, "form_id": "demo", ...}``

Times are RFC 3339 strings or microseconds since 1970. ``null`` stands for a field's default where it has one. A field
that the schema does not have is an error, so that a misspelt one is not silently lost. Messages never hold a value.
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

_LONG = 2**63

Problems = list[Problem]
Convert = Callable[[Any, str, Problems], Any]


def from_json(payload: bytes | dict[str, Any], schemas: Registry | None = None) -> tuple[str, dict[str, Any] | Dead]:
    """Turn a JSON event into (its type, a full record) or (its type as far as known, Dead with every problem)."""
    if isinstance(payload, dict):
        document: Any = payload
    else:
        try:
            document = orjson.loads(payload)
        except ValueError as error:
            return "", Dead(Reason.NOT_JSON, (Problem("", f"not JSON: {error}"),))
    if not isinstance(document, dict):
        return "", Dead(Reason.INVALID_FIELD, (Problem("", "an event is a JSON object"),))
    events = (schemas or registry()).events
    name = document.get("type")
    if not isinstance(name, str) or name not in events:
        near = get_close_matches(name, events, 1) if isinstance(name, str) else []
        hint = f"did you mean {near[0]}? " if near else ""
        words = (
            f"{'no event type is given' if name is None else 'no such event type'}; {hint}known: {', '.join(events)}"
        )
        return "", Dead(Reason.UNKNOWN_EVENT_TYPE, (Problem("/type", words),))
    problems: Problems = []
    record = _converter(events[name])({k: v for k, v in document.items() if k != "type"}, "", problems)
    if problems:
        return name, Dead(Reason.INVALID_FIELD, tuple(problems))
    return name, record


_converters: dict[int, Convert] = {}


def _converter(kind: RecordType) -> Convert:
    # Keyed by the schema object: types hold dicts, which do not hash.
    key = id(kind.whole)
    if key not in _converters:
        _converters[key] = _record(kind.whole)
    return _converters[key]


def _record(schema: dict[str, Any]) -> Convert:
    parts = [(f["name"], _of(f["type"]), "default" in f, f.get("default")) for f in schema["fields"]]
    names = frozenset(part[0] for part in parts)
    inner = {f["name"]: frozenset(g["name"] for g in f["type"]["fields"]) for f in schema["fields"] if _is_record(f)}

    def convert(value: Any, path: str, problems: Problems) -> Any:
        if not isinstance(value, dict):
            problems.append(Problem(path, "has to be an object"))
            return None
        record: dict[str, Any] = {}
        for name, of, optional, default in parts:
            given = value.get(name)
            if given is not None:
                record[name] = of(given, f"{path}/{name}", problems)
            elif optional:
                record[name] = dict(default) if isinstance(default, dict) else default
            else:
                problems.append(Problem(f"{path}/{name}", "is missing"))
        if not names.issuperset(value):
            problems += [Problem(f"{path}/{name}", _unknown(name, names, inner)) for name in value if name not in names]
        return record

    return convert


def _is_record(own: dict[str, Any]) -> bool:
    return isinstance(own["type"], dict) and own["type"].get("type") == "record"


def _unknown(name: str, names: frozenset[str], inner: dict[str, frozenset[str]]) -> str:
    paths = {known: f"/{known}" for known in names}
    for outer, fields in inner.items():
        paths |= {known: f"/{outer}/{known}" for known in fields}
    near = get_close_matches(name, paths, 1)
    return "no such field" + (f"; did you mean {paths[near[0]]}?" if near else "")


def _of(schema: Any) -> Convert:
    if isinstance(schema, list):
        return _of(next(branch for branch in schema if branch != "null"))
    if isinstance(schema, dict):
        if schema.get("logicalType") == "timestamp-micros":
            return _time
        if schema["type"] == "record":
            return _record(schema)
        if schema["type"] == "map":
            return _map(_of(schema["values"]))
        return _of(schema["type"])
    return _PLAIN[schema]


def _map(of: Convert) -> Convert:
    def convert(value: Any, path: str, problems: Problems) -> Any:
        if not isinstance(value, dict):
            problems.append(Problem(path, "has to be an object of strings"))
            return None
        return {key: of(item, f"{path}/{key}", problems) for key, item in value.items()}

    return convert


def _string(value: Any, path: str, problems: Problems) -> Any:
    if not isinstance(value, str):
        problems.append(Problem(path, f"has to be a string, not {_kind(value)}"))
    return value


def _long(value: Any, path: str, problems: Problems) -> Any:
    if isinstance(value, bool) or not isinstance(value, int):
        problems.append(Problem(path, f"has to be a whole number, not {_kind(value)}"))
    elif not -_LONG <= value < _LONG:
        problems.append(Problem(path, "does not fit into 64 bits"))
    return value


def _double(value: Any, path: str, problems: Problems) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        problems.append(Problem(path, f"has to be a number, not {_kind(value)}"))
        return value
    return float(value)


def _boolean(value: Any, path: str, problems: Problems) -> Any:
    if not isinstance(value, bool):
        problems.append(Problem(path, f"has to be true or false, not {_kind(value)}"))
    return value


def _time(value: Any, path: str, problems: Problems) -> Any:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LONG:
        return value
    if isinstance(value, str):
        try:
            at = datetime.fromisoformat(value)
            if at.tzinfo is not None:
                return from_datetime(at)
        except (ValueError, OverflowError):
            pass
    words = "not a time; give RFC 3339 with a zone, such as 2026-01-31T12:00:00Z, or microseconds since 1970"
    problems.append(Problem(path, words))
    return None


_PLAIN: dict[str, Convert] = {"string": _string, "long": _long, "int": _long, "double": _double, "boolean": _boolean}


def _kind(value: Any) -> str:
    names = {
        dict: "an object",
        list: "an array",
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), "null")
