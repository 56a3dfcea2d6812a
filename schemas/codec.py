"""Bytes to records and back. Three wire forms come in; one, or with a registry another, goes out.

- Avro single-object encoding: ``C3 01``, the 8-byte CRC-64-AVRO fingerprint (little-endian), the datum
- Confluent framing: ``00``, the 4-byte schema id (big-endian), the datum
- JSON of the same schema: an object with ``"type"`` (see :mod:`schemas.json_form`)

Source: Avro 1.12 specification, "Single-object encoding" and "Object container files"; Confluent's "Wire format".
Times stay integers (microseconds since 1970, UTC). An earlier form of a schema is resolved to the present one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BytesIO
from typing import Any, NamedTuple

from fastavro import parse_schema, schemaless_reader, schemaless_writer
from fastavro.schema import fingerprint, to_parsing_canonical_form

from infra.outcomes import Dead, Problem, Reason
from schemas.json_form import from_json
from schemas.registry import RecordType, Registry, registry, without_logical_types

MARK = b"\xc3\x01"
HEADER = 10  # bytes of a single-object header
_CONFLUENT = 5  # bytes of a Confluent header
_SYNC = b"leadstream-block"  # 16 bytes between the blocks of a container

# What fastavro raises on bytes that are not a datum of the schema (found by fuzzing; the test repeats it).
_BROKEN = (EOFError, IndexError, KeyError, MemoryError, OverflowError, TypeError, ValueError)

Fetch = Callable[[int], str]  # schema id -> the writer's schema as JSON; KeyError: no such id


class DecodeError(Exception):
    """The payload can never be decoded; ``dead`` says why."""

    def __init__(self, reason: Reason, message: str, path: str = "") -> None:
        super().__init__(message)
        self.dead = Dead(reason, (Problem(path, message),))


class Decoded(NamedTuple):
    """A record of the schema ``type`` (by file name), with every field of its present form."""

    type: str
    record: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Reader:
    name: str
    writer: Any
    reader: Any  # None: the writer's form is the present one

    def read(self, payload: bytes, start: int) -> Decoded:
        stream = BytesIO(payload)
        stream.seek(start)
        try:
            record = schemaless_reader(stream, self.writer, self.reader)
        except _BROKEN as error:
            raise DecodeError(
                Reason.NOT_AVRO, f"the bytes are not a whole {self.name} ({type(error).__name__})"
            ) from None
        if stream.tell() != len(payload):
            raise DecodeError(Reason.NOT_AVRO, f"{len(payload) - stream.tell()} bytes follow after the {self.name}")
        return Decoded(self.name, record)


class Codec:
    """Decodes and encodes by one registry. ``fetch`` asks a Confluent registry, whose ids then go before ours."""

    def __init__(self, schemas: Registry | None = None, fetch: Fetch | None = None) -> None:
        self._schemas = schemas or registry()
        self._fetch = fetch
        self._by_mark: dict[bytes, _Reader] = {}
        self._by_id: dict[int, _Reader] = {}  # what ``fetch`` found
        self._by_own_id: dict[int, _Reader] = {}
        present = self._schemas.types
        for form in self._schemas.forms():
            now = present[form.name]
            reader = _Reader(form.name, form.bare, None if form is now else now.bare)
            self._by_mark.setdefault(MARK + form.fingerprint, reader)
            self._by_own_id.setdefault(form.confluent_id, reader)

    def decode(self, payload: bytes) -> Decoded:
        """Decode one payload.

        Raises:
            DecodeError: it is none of the three forms, of an unknown schema, cut, or has wrong fields (JSON).
            DependencyAway: a schema id has to be asked for and the registry is not reachable.

        """
        first = payload[:1]
        if first == b"\xc3":
            reader = self._by_mark.get(payload[:HEADER])
            if reader is not None:
                return reader.read(payload, HEADER)
            if payload[:2] == MARK and len(payload) >= HEADER:
                raise DecodeError(Reason.UNKNOWN_SCHEMA, f"no schema with fingerprint {payload[2:HEADER].hex()}")
        elif first == b"\x00" and len(payload) >= _CONFLUENT:
            return self._confluent(int.from_bytes(payload[1:_CONFLUENT], "big")).read(payload, _CONFLUENT)
        elif payload.lstrip()[:1] == b"{":
            return self._json(payload)
        raise DecodeError(
            Reason.NOT_AVRO, "neither Avro (single-object or Confluent framing) nor JSON; see /v1/schemas for the forms"
        )

    def encoder(self, name: str) -> Callable[[dict[str, Any]], bytes]:
        """Return a function that encodes records of the type ``name``, single-object."""
        kind = self._schemas.types[name]
        head, bare = MARK + kind.fingerprint, kind.bare

        def encode(record: dict[str, Any]) -> bytes:
            stream = BytesIO()
            stream.write(head)
            schemaless_writer(stream, bare, record)
            return stream.getvalue()

        return encode

    def _confluent(self, schema_id: int) -> _Reader:
        reader = self._by_id.get(schema_id)
        if reader is None and self._fetch is not None:
            try:
                reader = self._by_id[schema_id] = self._adopt(self._fetch(schema_id))
            except KeyError:
                reader = None
        reader = reader or self._by_own_id.get(schema_id)
        if reader is None:
            raise DecodeError(Reason.UNKNOWN_SCHEMA, f"no schema with id {schema_id}")
        return reader

    def _adopt(self, text: str) -> _Reader:
        """Make a reader of a schema that a registry gave: it is known by its record's name."""
        try:
            schema = json.loads(text)
            name = str(schema["name"]).rpartition(".")[2]
            now = self._schemas.types[name]
            mark = bytes.fromhex(fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO"))
            return self._by_mark.get(MARK + mark) or _Reader(
                name, parse_schema(without_logical_types(schema)), now.bare
            )
        except (ValueError, TypeError) as error:
            raise DecodeError(Reason.UNKNOWN_SCHEMA, f"the registry's schema is unusable ({error})") from None

    def _json(self, payload: bytes) -> Decoded:
        kind, found = from_json(payload, self._schemas)
        if isinstance(found, Dead):
            error = DecodeError(found.reason, found.detail)
            error.dead = found
            raise error
        return Decoded(kind, found)


def header(fingerprint8: bytes) -> bytes:
    """Return the single-object header of the schema with these 8 fingerprint bytes."""
    return MARK + fingerprint8


def container_header(form: RecordType) -> bytes:
    """Return the header of an Avro object container file of ``form``'s datums (codec null)."""
    meta = {"avro.schema": json.dumps(form.whole).encode(), "avro.codec": b"null"}
    out = BytesIO()
    out.write(b"Obj\x01")
    out.write(_long(len(meta)))
    for key, value in meta.items():
        out.write(_long(len(key)) + key.encode() + _long(len(value)) + value)
    out.write(_long(0) + _SYNC)
    return out.getvalue()


def container(head: bytes, payloads: Iterable[bytes]) -> bytes:
    """Return single-object ``payloads`` of one schema as a container whose header is ``head``: nothing is decoded."""
    datums = [payload[HEADER:] for payload in payloads]
    return b"".join((head, _long(len(datums)), _long(sum(map(len, datums))), *datums, _SYNC))


def _long(number: int) -> bytes:
    """Encode an Avro long: zig-zag, then seven bits a byte."""
    number = number << 1 if number >= 0 else (-number << 1) - 1
    out = bytearray()
    while number > 0x7F:  # noqa: PLR2004 - seven bits
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
