"""Loads the schemas. The folders of this package are the index; there is no other list.

- ``types/``: records that all events share
- ``events/``: lead event types, one per file
- ``records/``: records that the pipeline writes
- ``lead.avsc``: the canonical lead
- ``past/<name>/``: earlier versions of a schema, so that records of producers that still use them can be read

Attributes of an event type, in addition to Avro's ``type``, ``name`` (that of the file), ``namespace`` and ``fields``:

- ``"authority"``, required: precedence in merging: ``person`` over ``crm_user`` over ``app`` over ``enrichment``;
  ``operator``: the event changes which leads there are, and no value
- ``"scope"``: the scope of :mod:`infra.keys` that a sender needs in addition to ``ingest`` (see :mod:`schemas.senders`)
- ``"doc"``, required: one sentence that says what happened; ``leadstream schemas list`` prints it

Its first two fields are ``envelope`` and ``identifiers``. A field ``cleared``, an array of strings, names fields of the
lead to clear (see :mod:`schemas.cleared`). Attributes of the fields after them, all optional, in
addition to Avro's ``name``, ``type`` and ``default``:

- ``"lead": "first_name"``: the field is merged into ``first_name`` of the lead. A map is merged key by key.
- ``"lead": "consent", "value": "status"``: the field has a key of the lead's map ``consent``, the field ``status`` the
  value for that key.
- ``"enum": [...]``: the allowed values
- ``"identity": true``: an identifier of the person (only in ``types/identifiers.avsc``)
- ``"identity": "lead"``: the id of a lead that the event is about; such an event needs no identifiers
- ``"pii": true``: personal data
- ``"example": ...``: the value in the example event; without it, the default or a fixed value of the field's type
- ``"doc"``: a description, if the name does not say it all
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from fastavro.schema import fingerprint, parse_schema, to_parsing_canonical_form

from infra.keys import SCOPES

FOLDER = Path(__file__).parent
AUTHORITIES = ("person", "crm_user", "app", "enrichment", "operator")
_DEFAULT_EXAMPLES = {"string": "example", "long": 1, "int": 1, "double": 1.0, "boolean": True}
_SHARED = ("types/envelope.avsc", "types/identifiers.avsc", "lead.avsc")

Json = dict[str, Any]


class SchemaError(Exception):
    """A schema file is invalid; the message names the file and how to fix it."""


@dataclass(frozen=True, slots=True)
class RecordType:
    """One version of an Avro record type."""

    name: str
    source: Json = field(repr=False)  # the content of the file
    full_schema: Json = field(repr=False)  # self-contained: the shared types are written out
    parsed_schema: Any = field(repr=False, compare=False)  # for fastavro, without logical types: times stay integers
    fingerprint: bytes  # CRC-64-AVRO of the parsing canonical form, 8 bytes little-endian

    @property
    def doc(self) -> str:
        """The description in the schema file."""
        return str(self.source.get("doc", ""))

    @property
    def confluent_id(self) -> int:
        """The schema id in Confluent framing without an external registry: 31 bits of the fingerprint, never 0."""
        return int.from_bytes(self.fingerprint, "little") & 0x7FFFFFFF or 1

    @property
    def example(self) -> Json:
        """A record of the examples of all fields."""
        return _example(self.full_schema)


@dataclass(frozen=True, slots=True)
class EventType(RecordType):
    """One lead event type. "Own fields" are the fields after ``envelope`` and ``identifiers``."""

    authority: str = ""
    scope: str = ""  # that a sender needs in addition to ingest; "": none
    lead_fields: Mapping[str, str] = field(default_factory=dict)  # own field -> field or map of the lead
    lead_maps: Mapping[str, tuple[str, str]] = field(
        default_factory=dict
    )  # map of the lead -> (own field with the key, own field with the value)
    enums: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # own field -> allowed values
    maps: tuple[str, ...] = ()  # own fields that are maps
    lists: tuple[str, ...] = ()  # own fields that are arrays
    numbers: tuple[str, ...] = ()  # own fields that are floating-point numbers
    lead_ids: tuple[str, ...] = ()  # own fields that are ids of the leads that the event is about


@dataclass(frozen=True, slots=True)
class Registry:
    """All schemas of this installation, by name."""

    events: Mapping[str, EventType]
    records: Mapping[str, RecordType]
    lead: RecordType
    past: tuple[RecordType, ...]  # earlier versions; ``name`` is the name of the current version

    @property
    def types(self) -> dict[str, RecordType]:
        """The current version of every type, by name."""
        return {"lead": self.lead, **self.records, **self.events}

    def all_versions(self) -> Iterator[RecordType]:
        """Yield every version that can be decoded: the current ones first, then the earlier ones."""
        yield from self.types.values()
        yield from self.past


@cache
def registry() -> Registry:
    """Return the registry of this installation; its files are read once."""
    return load_registry(FOLDER)


def load_registry(folder: Path) -> Registry:
    """Read all schemas below ``folder``.

    Raises:
        SchemaError: a file is invalid.

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
        raise SchemaError(f"{path.name}: not valid JSON: {error}") from error
    return document


def _record(path: Path, shared: Mapping[str, Json], name: str = "") -> RecordType:
    source = _read(path)
    name = name or path.stem
    if source.get("name") != name:
        raise SchemaError(f"{path.name}: the record's name is {source.get('name')!r}, but must be {name!r}")
    full_schema = _inline(source, shared, set())
    try:
        parsed_schema = parse_schema(without_logical_types(full_schema))
        digest = bytes.fromhex(fingerprint(to_parsing_canonical_form(full_schema), "CRC-64-AVRO"))
    except Exception as error:
        raise SchemaError(f"{path.name}: {error}") from error
    return RecordType(name, source, full_schema, parsed_schema, digest)


def _event(path: Path, shared: Mapping[str, Json]) -> EventType:
    record = _record(path, shared)
    fields = record.source["fields"]
    if [f["type"] for f in fields[:2]] != ["leadstream.envelope", "leadstream.identifiers"]:
        raise SchemaError(f"{path.name}: the first two fields must be envelope and identifiers")
    authority = record.source.get("authority")
    if authority not in AUTHORITIES:
        raise SchemaError(f"{path.name}: authority is {authority!r}, but must be one of {', '.join(AUTHORITIES)}")
    scope = record.source.get("scope", "")
    if scope and scope not in SCOPES:
        raise SchemaError(f"{path.name}: scope is {scope!r}, but must be one of {', '.join(SCOPES)}")
    lead_names = {f["name"] for f in shared["leadstream.lead"]["fields"]}
    lead_fields: dict[str, str] = {}
    lead_maps: dict[str, tuple[str, str]] = {}
    for own in fields[2:]:
        target = own.get("lead")
        if target is None:
            continue
        if target not in lead_names:
            raise SchemaError(f"{path.name}: field {own['name']}: lead.avsc has no field {target!r} to merge into")
        if "value" in own:
            lead_maps[target] = (own["name"], own["value"])
        else:
            lead_fields[own["name"]] = target
    types = {own["name"]: own["type"] for own in record.full_schema["fields"][2:]}
    return EventType(
        record.name,
        record.source,
        record.full_schema,
        record.parsed_schema,
        record.fingerprint,
        authority=authority,
        scope=scope,
        lead_fields=lead_fields,
        lead_maps=lead_maps,
        enums={own["name"]: tuple(own["enum"]) for own in fields if "enum" in own},
        maps=tuple(name for name, kind in types.items() if isinstance(kind, dict) and kind["type"] == "map"),
        lists=tuple(name for name, kind in types.items() if isinstance(kind, dict) and kind["type"] == "array"),
        numbers=tuple(name for name, kind in types.items() if "double" in kind or "float" in kind),
        lead_ids=tuple(own["name"] for own in fields[2:] if own.get("identity") == "lead"),
    )


def _inline(node: Any, shared: Mapping[str, Json], seen: set[str]) -> Any:
    """Replace the first use of each shared type by its definition; Avro allows one definition of a name."""
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
    """Return a copy of a schema in which times are plain integers: fastavro then creates no datetime objects."""
    if isinstance(node, list):
        return [without_logical_types(item) for item in node]
    if isinstance(node, dict):
        return {
            key: without_logical_types(value) if key in ("type", "items", "values", "fields") else value
            for key, value in node.items()
            if key != "logicalType"
        }
    return node


def _example(schema: Json) -> Json:
    return {own["name"]: _field_example(own) for own in schema["fields"]}


def _field_example(own: Json) -> Any:
    if "example" in own:
        return own["example"]
    if isinstance(own["type"], dict) and own["type"].get("type") == "record":
        return _example(own["type"])
    if "default" in own:
        return own["default"]
    return _DEFAULT_EXAMPLES[own["type"] if isinstance(own["type"], str) else own["type"]["type"]]
