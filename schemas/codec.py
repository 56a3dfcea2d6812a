"""Decodes payloads to records and encodes records to payloads.

Three wire formats are decoded:

- Avro single-object encoding: ``C3 01``, the 8-byte CRC-64-AVRO fingerprint (little-endian), the datum
- Confluent framing: ``00``, the 4-byte schema id (big-endian), the datum
- JSON of the same schema: an object with ``"type"`` (see :mod:`schemas.json_form`)

Records are encoded in Avro single-object encoding. Times stay integers: microseconds since 1970, UTC. A datum of an
earlier version of a schema is resolved to the current version.

Source: Avro 1.12 specification, "Single-object encoding" and "Object container files"; Confluent, "Wire format".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from typing import Any, NamedTuple

from fastavro import parse_schema, schemaless_reader, schemaless_writer
from fastavro.read import SchemaResolutionError
from fastavro.schema import fingerprint, to_parsing_canonical_form
from fastavro.validation import ValidationError, validate

from infra.outcomes import Dead, Problem, Reason
from schemas.foreign_schemas import (
    Conversions,
    ForeignSchemaError,
    InvalidTimeError,
    check_foreign_schema,
    convert_times,
    time_conversions,
    without_defaults,
)
from schemas.json_form import from_json
from schemas.registry import RecordType, Registry, registry, without_logical_types
from schemas.resolution import UnresolvableError, resolve

MARKER = b"\xc3\x01"  # the first two bytes of single-object encoding
HEADER = 10  # bytes of a single-object header: marker and fingerprint
_BOM = b"\xef\xbb\xbf"  # some programs write it before JSON
_CONFLUENT_HEADER = 5  # bytes: 00 and the schema id
_SYNC = b"leadstream-block"  # the sync marker between the blocks of a container file, 16 bytes

# Schema id -> the writer's schema as JSON. Raises KeyError for an unknown id, DependencyUnavailable if the registry is
# unavailable.
FetchSchema = Callable[[int], str]


class DecodeError(Exception):
    """The payload cannot be decoded, now or later. ``dead`` has the reason and the problems."""

    def __init__(self, reason: Reason, message: str, path: str = "") -> None:
        super().__init__(message)
        self.dead = Dead(reason, (Problem(path, message),))


class Decoded(NamedTuple):
    """A decoded record: ``type`` is the schema's name, ``record`` has every field of its current version."""

    type: str
    record: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _DatumReader:
    name: str
    writer_schema: Any
    reader_schema: Any  # None: the writer used the current version

    def read(self, payload: bytes, start: int) -> Decoded:
        stream = BytesIO(payload)
        stream.seek(start)
        try:
            record = self._record(stream)
        except DecodeError:
            raise
        except (SchemaResolutionError, ValidationError):
            message = f"the writer's schema cannot be resolved to {self.name}: a field is missing or has another type"
            raise DecodeError(Reason.UNKNOWN_SCHEMA, message) from None
        except Exception as error:  # noqa: BLE001 - whatever the library raises: fuzzing has found nine types
            message = f"the payload is truncated or is not a valid {self.name} record ({type(error).__name__})"
            raise DecodeError(Reason.NOT_AVRO, message) from None
        if extra := len(payload) - stream.tell():
            raise DecodeError(Reason.NOT_AVRO, f"{extra} extra bytes follow the {self.name} record: send one record")
        return Decoded(self.name, record)

    def _record(self, stream: BytesIO) -> dict[str, Any]:
        found: dict[str, Any] = schemaless_reader(stream, self.writer_schema, self.reader_schema)
        return found


@dataclass(frozen=True, slots=True)
class _ForeignReader(_DatumReader):
    """Reads records of a writer schema of another registry. ``wanted``: the current schema."""

    wanted: Mapping[str, Any]
    conversions: Conversions

    def _record(self, stream: BytesIO) -> dict[str, Any]:
        written = schemaless_reader(stream, self.writer_schema, None)
        try:
            found: dict[str, Any] = resolve(written, self.wanted)
            convert_times(found, self.conversions)
        except UnresolvableError as error:
            message = f"the writer's schema cannot be resolved to {self.name}: a field is missing or has another type"
            raise DecodeError(Reason.UNKNOWN_SCHEMA, message, error.path) from None
        except InvalidTimeError as error:
            message = "the time is out of range: check its unit"
            raise DecodeError(Reason.INVALID_FIELD, message, error.path) from None
        validate(found, self.reader_schema)
        return found


class Codec:
    """Decodes and encodes with the schemas of one registry.

    Args:
        schemas: the schemas to use; by default those of this installation.
        fetch: returns the schema of an id in Confluent framing from an external registry. Its ids take precedence over
            ``RecordType.confluent_id``. Without it only the latter are known.

    """

    def __init__(self, schemas: Registry | None = None, fetch: FetchSchema | None = None) -> None:
        self._schemas = schemas or registry()
        self._fetch = fetch
        self._by_header: dict[bytes, _DatumReader] = {}
        self._by_fetched_id: dict[int, _DatumReader | DecodeError] = {}
        self._by_own_id: dict[int, _DatumReader] = {}
        current_types = self._schemas.types
        for version in self._schemas.all_versions():
            current = current_types[version.name]
            reader_schema = None if version is current else current.parsed_schema
            reader = _DatumReader(version.name, version.parsed_schema, reader_schema)
            self._by_header.setdefault(MARKER + version.fingerprint, reader)
            self._by_own_id.setdefault(version.confluent_id, reader)

    def decode(self, payload: bytes) -> Decoded:
        """Decode one payload.

        Raises:
            DecodeError: the payload has none of the three wire formats, is truncated or invalid, its schema is unknown,
                or a field of its JSON is wrong.
            DependencyUnavailable: a schema must be fetched from the external registry, and it is unavailable.

        """
        payload = payload.removeprefix(_BOM)
        first = payload[:1]
        if first == b"\xc3":
            reader = self._by_header.get(payload[:HEADER])
            if reader is not None:
                return reader.read(payload, HEADER)
            if payload[:2] == MARKER and len(payload) >= HEADER:
                message = f"no schema with fingerprint {payload[2:HEADER].hex()}: use a schema of GET /v1/schemas"
                raise DecodeError(Reason.UNKNOWN_SCHEMA, message)
        elif first == b"\x00" and len(payload) >= _CONFLUENT_HEADER:
            schema_id = int.from_bytes(payload[1:_CONFLUENT_HEADER], "big")
            return self._reader_of(schema_id).read(payload, _CONFLUENT_HEADER)
        elif payload.lstrip()[:1] == b"{":
            return self._decode_json(payload)
        message = "not an event: send a JSON object, or Avro in single-object encoding or in Confluent framing"
        raise DecodeError(Reason.NOT_AVRO, message)

    def encoder(self, name: str) -> Callable[[dict[str, Any]], bytes]:
        """Return a function that encodes records of type ``name`` in Avro single-object encoding."""
        kind = self._schemas.types[name]
        header, schema = MARKER + kind.fingerprint, kind.parsed_schema

        def encode(record: dict[str, Any]) -> bytes:
            stream = BytesIO()
            stream.write(header)
            schemaless_writer(stream, schema, record)
            return stream.getvalue()

        return encode

    def _reader_of(self, schema_id: int) -> _DatumReader:
        reader = self._by_fetched_id.get(schema_id)
        if reader is None and self._fetch is not None:
            with suppress(KeyError):
                text = self._fetch(schema_id)
                reader = self._by_fetched_id[schema_id] = self._reader_or_error(text)
        if isinstance(reader, DecodeError):
            raise DecodeError(reader.dead.reason, str(reader))
        reader = reader or self._by_own_id.get(schema_id)
        if reader is None:
            raise DecodeError(Reason.UNKNOWN_SCHEMA, f"no schema with id {schema_id}: register the schema first")
        return reader

    def _reader_or_error(self, schema_text: str) -> _DatumReader | DecodeError:
        try:
            return self._reader_for(schema_text)
        except DecodeError as error:  # kept, so that each record does not fetch and check the schema again
            return error

    def _reader_for(self, schema_text: str) -> _DatumReader:
        """Return the reader for a schema of the external registry; its record name selects the type."""
        try:
            return self._foreign_reader(schema_text)
        except ForeignSchemaError as error:
            raise DecodeError(Reason.UNKNOWN_SCHEMA, f"the writer's schema cannot be used: {error}") from None
        except Exception as error:  # noqa: BLE001 - whatever the parsers raise for a schema that somebody else wrote
            message = f"the external schema registry returned an invalid schema ({type(error).__name__})"
            raise DecodeError(Reason.UNKNOWN_SCHEMA, message) from None

    def _foreign_reader(self, schema_text: str) -> _DatumReader:
        schema = without_defaults(check_foreign_schema(schema_text))
        name = str(schema["name"]).rpartition(".")[2]
        current = self._schemas.types.get(name)
        if current is None:
            raise ForeignSchemaError("its record name is not a type of leadstream")
        conversions = time_conversions(schema, current.full_schema)
        digest = bytes.fromhex(fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO"))
        if not conversions and (same := self._by_header.get(MARKER + digest)):
            return same
        written = parse_schema(without_logical_types(schema))
        return _ForeignReader(name, written, current.parsed_schema, current.full_schema, conversions)

    def _decode_json(self, payload: bytes) -> Decoded:
        kind, found = from_json(payload, self._schemas)
        if isinstance(found, Dead):
            error = DecodeError(found.reason, found.detail)
            error.dead = found
            raise error
        return Decoded(kind, found)


def container_header(kind: RecordType) -> bytes:
    """Return the header of an Avro object container file for datums of ``kind`` (codec null)."""
    meta = {"avro.schema": json.dumps(kind.full_schema).encode(), "avro.codec": b"null"}
    out = BytesIO()
    out.write(b"Obj\x01")
    out.write(_long(len(meta)))
    for key, value in meta.items():
        out.write(_long(len(key)) + key.encode() + _long(len(value)) + value)
    out.write(_long(0) + _SYNC)
    return out.getvalue()


def container(header: bytes, payloads: Iterable[bytes]) -> bytes:
    """Join payloads into one Avro object container file, without decoding them.

    Args:
        header: :func:`container_header` of the payloads' schema.
        payloads: records of one schema in single-object encoding.

    """
    datums = [payload[HEADER:] for payload in payloads]
    return b"".join((header, _long(len(datums)), _long(sum(map(len, datums))), *datums, _SYNC))


def _long(number: int) -> bytes:
    """Encode an Avro long: zig-zag, then 7 bits per byte, least significant first."""
    number = number << 1 if number >= 0 else (-number << 1) - 1
    out = bytearray()
    while number > 0x7F:  # noqa: PLR2004 - 7 bits
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
