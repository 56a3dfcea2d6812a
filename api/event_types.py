"""GET /v1/schemas and /v1/schemas/{type}: the event types, each with its schema and a valid example."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from api.auth import GuardedRoute
from api.errors import Refusal, json_response
from infra.keys import INGEST, READ
from schemas.registry import RecordType, registry


async def index(_: Request) -> Response:
    """GET /v1/schemas: return the lead event types and the record types of the pipeline."""
    schemas = registry()
    return json_response(
        200,
        {
            "events": [_summary(kind) for kind in schemas.events.values()],
            "records": [_summary(kind) for kind in (schemas.lead, *schemas.records.values())],
        },
    )


async def one(request: Request) -> Response:
    """Return one type: its self-contained Avro schema and, for an event, an example in JSON."""
    schemas = registry()
    name = request.path_params["type"]
    kind = schemas.types.get(name)
    if kind is None:
        raise Refusal("not_found", f"unknown type; the types are: {', '.join(schemas.types)}")
    example = {"example": {"type": name} | kind.example} if name in schemas.events else {}
    return json_response(200, _summary(kind) | {"schema": kind.full_schema} | example)


def _summary(kind: RecordType) -> dict[str, Any]:
    return {
        "type": kind.name,
        "doc": kind.doc,
        "fingerprint": kind.fingerprint.hex(),
        "confluent_id": kind.confluent_id,
        "url": f"/v1/schemas/{kind.name}",
    }


_SCOPES = {INGEST, READ}

ROUTES = [GuardedRoute("/v1/schemas", index, scopes=_SCOPES), GuardedRoute("/v1/schemas/{type}", one, scopes=_SCOPES)]
