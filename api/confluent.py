"""The part of Confluent's Schema Registry API that stock producers and consumers need, over our own registry.

A confluent-kafka ``AvroSerializer`` whose ``schema.registry.url`` is this server writes to ``leads.received`` without
any other registry. Ids are computed from the schema and equal on every installation: nothing is stored. A schema is
recognised by its parsing canonical form, so its doc strings and our attributes may be omitted. Registering an unknown
schema is refused: a type is a file in ``schemas/events``.

Source: https://docs.confluent.io/platform/current/schema-registry/develop/api.html (paths, codes, error bodies).
"""

from __future__ import annotations

from typing import Any

import orjson
from fastavro.schema import SchemaParseException, UnknownType, fingerprint, to_parsing_canonical_form
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from schemas.registry import RecordType, registry

_TYPE = "application/vnd.schemaregistry.v1+json"
_MAX_SCHEMA = 1 << 20
_TOPIC = "leads.received"


def _json(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type=_TYPE)


def _refuse(status: int, code: int, message: str) -> Response:
    return _json({"error_code": code, "message": message}, status)


def _forms(name: str) -> list[RecordType]:
    """Return the forms of a type, oldest first: a form's version is its place here, counted from 1."""
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
    """Return the type that a subject stands for: record name, topic-record name, or our bare name."""
    name = subject.removeprefix(f"{_TOPIC}-").removeprefix("leadstream.")
    return name if name in registry().types else None


async def _found(request: Request) -> RecordType | Response:
    try:
        asked = orjson.loads(await request.body())
        text, kind = asked["schema"], asked.get("schemaType") or "AVRO"
        if kind != "AVRO" or len(text) > _MAX_SCHEMA:
            return _refuse(422, 42201, "only Avro schemas of at most 1 MiB are supported")
        mark = bytes.fromhex(fingerprint(to_parsing_canonical_form(orjson.loads(text)), "CRC-64-AVRO"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SchemaParseException, UnknownType):
        return _refuse(422, 42201, "not an Avro schema with every named type written out")
    known = next((form for form in registry().all_versions() if form.fingerprint == mark), None)
    return known or _refuse(
        409,
        409,
        "this schema is unknown. Use that of GET /v1/schemas/{type} with the same names and types, or add the "
        "type as a file in schemas/events; known: " + ", ".join(registry().events),
    )


async def register(request: Request) -> Response:
    """POST /subjects/{subject}/versions: give the id of a schema that we have."""
    form = await _found(request)
    return form if isinstance(form, Response) else _json(_described(request.path_params["subject"], form))


async def look_up(request: Request) -> Response:
    """POST /subjects/{subject}: whether we have it, and as what."""
    form = await _found(request)
    if not isinstance(form, Response):
        return _json(_described(request.path_params["subject"], form))
    if form.status_code == 409:  # noqa: PLR2004 - what registering says; looking up says it by Confluent's code
        return _refuse(404, 40403, orjson.loads(form.body)["message"])
    return form


async def by_id(request: Request) -> Response:
    """GET /schemas/ids/{id}: the schema of an id."""
    asked = request.path_params["id"]
    form = next((form for form in registry().all_versions() if form.confluent_id == asked), None)
    if form is None:
        return _refuse(404, 40403, f"no schema with id {asked}")
    return _json({"schema": orjson.dumps(form.full_schema).decode()})


async def subjects(_: Request) -> Response:
    """GET /subjects: every type by its record name."""
    return _json([f"leadstream.{name}" for name in sorted(registry().types)])


async def versions(request: Request) -> Response:
    """GET /subjects/{subject}/versions: 1 and up, the present form last."""
    name = _type_of(request.path_params["subject"])
    return _no_subject() if name is None else _json(list(range(1, len(_forms(name)) + 1)))


async def version(request: Request) -> Response:
    """GET /subjects/{subject}/versions/{version or latest}."""
    subject, asked = request.path_params["subject"], request.path_params["version"]
    name = _type_of(subject)
    if name is None:
        return _no_subject()
    forms = _forms(name)
    number = len(forms) if asked in {"latest", "-1"} else int(asked) if asked.isdecimal() else 0
    if not 1 <= number <= len(forms):
        return _refuse(404, 40402, f"unknown version; the versions are 1 to {len(forms)}, and latest")
    return _json(_described(subject, forms[number - 1]))


def _no_subject() -> Response:
    words = f"unknown subject: {_TOPIC} carries many types, so a subject is the name of a record, such as "
    return _refuse(404, 40401, words + "leadstream.form_submitted (use the record or the topic-record name strategy)")


async def config(_: Request) -> Response:
    """GET /config and /config/{subject}: every change is readable both ways."""
    return _json({"compatibilityLevel": "FULL"})


async def kinds(_: Request) -> Response:
    """GET /schemas/types."""
    return _json(["AVRO"])


ROUTES = [
    Route("/subjects", subjects),
    Route("/subjects/{subject}", look_up, methods=["POST"]),
    Route("/subjects/{subject}/versions", register, methods=["POST"]),
    Route("/subjects/{subject}/versions", versions),
    Route("/subjects/{subject}/versions/{version}", version),
    Route("/schemas/ids/{id:int}", by_id),
    Route("/schemas/types", kinds),
    Route("/config", config),
    Route("/config/{subject}", config),
]
