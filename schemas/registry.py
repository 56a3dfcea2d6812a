"""The registry: the folders of this package are the index, no list is kept by hand.

``types/`` holds what events share, ``events/`` one lead event type a file, ``records/`` what the pipeline itself
writes, ``lead.avsc`` the canonical lead, and ``past/<name>/`` the earlier forms of a schema, so that a producer which
still writes one is understood. Attributes of a field drive everything downstream:

- ``"lead": "first_name"``: merges into that field of the lead; on a map, key by key into that map of the lead
- ``"lead": "consent", "value": "status"``: this field is the key, the named field the value, in that map of the lead
- ``"identity": true``, ``"pii": true``, ``"enum": [...]``, ``"example": ...``

and ``"authority"`` of an event type says how much it weighs in merging (person, crm_user, app, enrichment).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from fastavro.schema import fingerprint, parse_schema, to_parsing_canonical_form

FOLDER = Path(__file__).parent
_PLAIN = {"string": "example", "long": 1, "int": 1, "double": 1.0, "boolean": True}  # where a field has no example
AUTHORITIES = ("person", "crm_user", "app", "enrichment")
_SHARED = ("types/envelope.avsc", "types/identifiers.avsc", "lead.avsc")

Json = dict[str, Any]


class SchemaError(Exception):
    """A file of the registry is wrong; the message names the file and what to mend."""


@dataclass(frozen=True, slots=True)
class RecordType:
    """One Avro record type. ``bare`` is the schema to read and write with: times stay integers."""

    name: str
    source: Json = field(repr=False)  # the file, as it is
    whole: Json = field(repr=False)  # with the shared types written out: what others are given
    bare: Any = field(repr=False, compare=False)  # parsed, without logical types
    fingerprint: bytes  # CRC-64-AVRO of the parsing canonical form, 8 bytes little-endian

    @property
    def doc(self) -> str:
        """What it says, for a reader."""
        return str(self.source.get("doc", ""))

    @property
    def confluent_id(self) -> int:
        """The schema id in Confluent framing where no registry gives one: 31 bits of the fingerprint, never 0."""
        return int.from_bytes(self.fingerprint, "little") & 0x7FFFFFFF or 1

    @property
    def example(self) -> Json:
        """A record made of the fields' examples."""
        return _example(self.whole)


@dataclass(frozen=True, slots=True)
class EventType(RecordType):
    """One lead event type."""

    authority: str = ""
    lead_fields: Mapping[str, str] = field(default_factory=dict)  # own field -> field (or map) of the lead
    lead_maps: Mapping[str, tuple[str, str]] = field(
        default_factory=dict
    )  # map of the lead -> (key field, value field)
    enums: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # own field -> the words it may hold
    maps: tuple[str, ...] = ()  # own fields that are maps
    numbers: tuple[str, ...] = ()  # own fields that are floating point numbers


@dataclass(frozen=True, slots=True)
class Registry:
    """All schemas of this installation."""

    events: Mapping[str, EventType]
    records: Mapping[str, RecordType]
    lead: RecordType
    past: tuple[RecordType, ...]  # earlier forms; ``name`` is that of the present form

    @property
    def types(self) -> dict[str, RecordType]:
        """Every present type by name."""
        return {"lead": self.lead, **self.records, **self.events}

    def forms(self) -> Iterator[RecordType]:
        """Yield every form that can be read: the present ones first, then the past ones."""
        yield from self.types.values()
        yield from self.past


@cache
def registry() -> Registry:
    """Return the registry of this package's folder, read once."""
    return load_registry(FOLDER)


def load_registry(folder: Path) -> Registry:
    """Read a registry folder.

    Raises:
        SchemaError: naming the file that is wrong.

    """
    shared: dict[str, Json] = {}
    for path in (folder / name for name in _SHARED):
        document = _read(path)
        shared[f"leadstream.{document['name']}"] = document
    events = {path.stem: _event(path, shared) for path in sorted((folder / "events").glob("*.avsc"))}
    records = {path.stem: _record(path, shared) for path in sorted((folder / "records").glob("*.avsc"))}
    lead = _record(folder / "lead.avsc", shared)
    past = tuple(_record(path, shared, path.parent.name) for path in sorted((folder / "past").glob("*/*.avsc")))
    return Registry(events, records, lead, past)


def _read(path: Path) -> Json:
    try:
        document: Json = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise SchemaError(f"{path.name}: not JSON: {error}") from error
    return document


def _record(path: Path, shared: Mapping[str, Json], name: str = "") -> RecordType:
    source = _read(path)
    name = name or path.stem
    if source.get("name") != name:
        raise SchemaError(f"{path.name}: its record is named {source.get('name')!r}; name it {name!r}")
    whole = _inline(source, shared, set())
    try:
        bare = parse_schema(without_logical_types(whole))
        mark = bytes.fromhex(fingerprint(to_parsing_canonical_form(whole), "CRC-64-AVRO"))
    except Exception as error:
        raise SchemaError(f"{path.name}: {error}") from error
    return RecordType(name, source, whole, bare, mark)


def _event(path: Path, shared: Mapping[str, Json]) -> EventType:
    record = _record(path, shared)
    fields = record.source["fields"]
    if [f["type"] for f in fields[:2]] != ["leadstream.envelope", "leadstream.identifiers"]:
        raise SchemaError(f"{path.name}: its first two fields are envelope and identifiers")
    authority = record.source.get("authority")
    if authority not in AUTHORITIES:
        raise SchemaError(f"{path.name}: authority is {authority!r}; give one of {', '.join(AUTHORITIES)}")
    lead_names = {f["name"] for f in shared["leadstream.lead"]["fields"]}
    plain: dict[str, str] = {}
    maps: dict[str, tuple[str, str]] = {}
    for own in fields[2:]:
        target = own.get("lead")
        if target is None:
            continue
        if target not in lead_names:
            raise SchemaError(f"{path.name}: field {own['name']} merges into {target!r}, which lead.avsc does not have")
        if "value" in own:
            maps[target] = (own["name"], own["value"])
        else:
            plain[own["name"]] = target
    enums = {own["name"]: tuple(own["enum"]) for own in fields if "enum" in own}
    named = {own["name"]: own["type"] for own in record.whole["fields"][2:]}
    return EventType(
        *(record.name, record.source, record.whole, record.bare, record.fingerprint, authority, plain, maps, enums),
        maps=tuple(name for name, kind in named.items() if isinstance(kind, dict) and kind["type"] == "map"),
        numbers=tuple(name for name, kind in named.items() if "double" in kind or "float" in kind),
    )


def _inline(node: Any, shared: Mapping[str, Json], seen: set[str]) -> Any:
    """Write the shared types out where they are first used, as Avro wants them."""
    if isinstance(node, str) and node in shared and node not in seen:
        seen.add(node)
        return _inline(shared[node], shared, seen)
    if isinstance(node, list):
        return [_inline(item, shared, seen) for item in node]
    if isinstance(node, dict):
        inlined = dict(node)
        if isinstance(node.get("type"), dict | list | str):
            inlined["type"] = _inline(node["type"], shared, seen)
        for key in ("items", "values"):
            if key in node:
                inlined[key] = _inline(node[key], shared, seen)
        if "fields" in node:
            inlined["fields"] = [_inline(item, shared, seen) for item in node["fields"]]
        return inlined
    return node


def without_logical_types(node: Any) -> Any:
    """Return a schema whose times are plain integers, so that no time is made into an object and back."""
    if isinstance(node, list):
        return [without_logical_types(item) for item in node]
    if isinstance(node, dict):
        return {
            key: without_logical_types(value) if key in ("type", "items", "values", "fields") else value
            for key, value in node.items()
            if key != "logicalType"
        }
    return node


def _example(whole: Json) -> Json:
    def of(own: Json) -> Any:
        if "example" in own:
            return own["example"]
        if isinstance(own["type"], dict) and own["type"].get("type") == "record":
            return _example(own["type"])
        if "default" in own:
            return own["default"]
        return _PLAIN[own["type"] if isinstance(own["type"], str) else own["type"]["type"]]

    return {own["name"]: of(own) for own in whole["fields"]}
