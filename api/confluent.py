"""The part of Confluent's Schema Registry API that standard producers and consumers use, for the types of leadstream.

A confluent-kafka ``AvroSerializer`` with the ``schema.registry.url`` of this server can write to ``leads.received``; no
other registry is needed. Ids are computed from the schema, so they are equal in every installation and nothing is
stored. A schema is recognised by its parsing canonical form, so doc strings and custom attributes may be omitted. An
unknown schema is not registered: an event type is a file in ``schemas/events``.

Source: https://docs.confluent.io/platform/current/schema-registry/develop/api.html (paths, codes, error bodies).
"""

from __future__ import annotations

from typing import Any

import orjson
from fastavro.schema import SchemaParseException, UnknownType, fingerprint, to_parsing_canonical_form
from starlette.requests import Request
from starlette.responses import Response

from api import body as bodies
from api.auth import GuardedRoute
from api.errors import CODES, Refusal
from infra.keys import INGEST, READ
from schemas.registry import RecordType, registry

_TYPE = "application/vnd.schemaregistry.v1+json"
_MAX_SCHEMA = 128 << 10  # characters, about 40 times our largest
_MAX_BODY = 512 << 10
_TOPIC = "leads.received"


def _json(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type=_TYPE)


def _refuse(status: int, code: int, message: str) -> Response:
    return _json({"error_code": code, "message": message}, status)


def _forms(name: str) -> list[RecordType]:
    """Return all versions of a type, oldest first; the first one is version 1."""
    schemas = registry()
    return [form for form in schemas.past if form.name == name] + [schemas.types[name]]


def _described(subject: str, form: RecordType) -> dict[str, Any]:
    return {
        "subject": subject,
        "id": form.confluent_id,
        "version": _forms(form.name).index(form) + 1,
        "schema": orjson.dumps(form.full_schema).decode(),
    }


def _type_of(subject: str) -> str | None:
    """Return the type of a subject, which is a record name, a topic-record name or the name of a type, or None."""
    if subject.startswith(_TOPIC):  # or the topic of a tenant, whose name may have a dash; that of a type has none
        subject = subject.rpartition("-")[2]
    name = subject.removeprefix("leadstream.")
    return name if name in registry().types else None


async def _found(request: Request) -> RecordType | Response:
    try:
        body = bodies.as_utf8(await bodies.read(request, _MAX_BODY))
    except Refusal as refusal:
        status = CODES[refusal.code].status
        return _refuse(status, status, str(refusal))
    try:
        document = orjson.loads(body)
        text, kind = document["schema"], document.get("schemaType") or "AVRO"
        if kind != "AVRO" or len(text) > _MAX_SCHEMA:
            return _refuse(422, 42201, "only Avro schemas of at most 128 KiB are supported")
        mark = bytes.fromhex(fingerprint(to_parsing_canonical_form(orjson.loads(text)), "CRC-64-AVRO"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SchemaParseException, UnknownType):
        return _refuse(
            422, 42201, "`schema` must be an Avro schema, as JSON text, that contains every named type it uses"
        )
    known = next((form for form in registry().all_versions() if form.fingerprint == mark), None)
    return known or _refuse(
        409,
        409,
        "this schema is unknown. Use the schema of GET /v1/schemas/{type} with its names and types, or add a new "
        "type as a file in schemas/events. Known types: " + ", ".join(registry().events),
    )


async def register(request: Request) -> Response:
    """POST /subjects/{subject}/versions: return the id of a known schema."""
    form = await _found(request)
    return form if isinstance(form, Response) else _json(_described(request.path_params["subject"], form))


async def look_up(request: Request) -> Response:
    """POST /subjects/{subject}: return the id and version of a known schema, else status 404."""
    form = await _found(request)
    if not isinstance(form, Response):
        return _json(_described(request.path_params["subject"], form))
    if form.status_code == 409:  # noqa: PLR2004 - an unknown schema: a look-up has its own code for it
        return _refuse(404, 40403, orjson.loads(form.body)["message"])
    return form


async def by_id(request: Request) -> Response:
    """GET /schemas/ids/{id}: return the schema of an id."""
    schema_id = request.path_params["id"]  # compared as text: int() refuses thousands of digits
    form = next((form for form in registry().all_versions() if str(form.confluent_id) == schema_id), None)
    if form is None:
        return _refuse(404, 40403, "no schema with this id")
    return _json({"schema": orjson.dumps(form.full_schema).decode()})


async def subjects(_: Request) -> Response:
    """GET /subjects: return the record names of all types."""
    return _json([f"leadstream.{name}" for name in sorted(registry().types)])


async def versions(request: Request) -> Response:
    """GET /subjects/{subject}/versions: return the version numbers, from 1 to the current one."""
    name = _type_of(request.path_params["subject"])
    return _no_subject() if name is None else _json(list(range(1, len(_forms(name)) + 1)))


async def version(request: Request) -> Response:
    """GET /subjects/{subject}/versions/{version}: return a schema; ``version`` is a number, ``latest`` or -1."""
    subject, requested = request.path_params["subject"], request.path_params["version"]
    name = _type_of(subject)
    if name is None:
        return _no_subject()
    forms = _forms(name)
    numbers = {str(number): number for number in range(1, len(forms) + 1)} | dict.fromkeys(("latest", "-1"), len(forms))
    number = numbers.get(requested)
    if number is None:
        return _refuse(404, 40402, f"unknown version; the versions are 1 to {len(forms)} and latest")
    return _json(_described(subject, forms[number - 1]))


def _no_subject() -> Response:
    message = f"unknown subject: {_TOPIC} has records of many types, so a subject is the name of a record, such as "
    return _refuse(404, 40401, message + "leadstream.form_submitted (use the record or the topic-record name strategy)")


async def config(_: Request) -> Response:
    """GET /config and /config/{subject}: return FULL, since changes are backward and forward compatible."""
    return _json({"compatibilityLevel": "FULL"})


async def kinds(_: Request) -> Response:
    """GET /schemas/types: return the supported schema types."""
    return _json(["AVRO"])


_SCOPES = {INGEST, READ}

ROUTES = [
    GuardedRoute("/subjects", subjects, scopes=_SCOPES),
    GuardedRoute("/subjects/{subject}", look_up, methods=["POST"], scopes=_SCOPES),
    GuardedRoute("/subjects/{subject}/versions", register, methods=["POST"], scopes=_SCOPES),
    GuardedRoute("/subjects/{subject}/versions", versions, scopes=_SCOPES),
    GuardedRoute("/subjects/{subject}/versions/{version}", version, scopes=_SCOPES),
    GuardedRoute("/schemas/ids/{id}", by_id, scopes=_SCOPES),
    GuardedRoute("/schemas/types", kinds, scopes=_SCOPES),
    GuardedRoute("/config", config, scopes=_SCOPES),
    GuardedRoute("/config/{subject}", config, scopes=_SCOPES),
]
