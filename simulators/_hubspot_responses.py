"""Response and error bodies of the HubSpot simulator."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

import orjson
from starlette.responses import Response

ErrorBody = dict[str, Any]


def json_response(status: int, body: object) -> Response:
    """Return a response with a JSON body."""
    return Response(orjson.dumps(body), status, media_type="application/json")


def error_response(status: int, category: str, message: str) -> Response:
    """Return a response with an error body."""
    return json_response(status, error_body(category, message))


def error_body(category: str, message: str) -> ErrorBody:
    """Return an error body as the API documents it."""
    return {"status": "error", "category": category, "message": message, "correlationId": str(uuid.uuid4())}


def invalid_property(code: str, name: str, message: str) -> ErrorBody:
    """Return the error body for one wrong property."""
    detail = json.dumps([{"isValid": False, "message": message, "error": code, "name": name}])
    return error_body("VALIDATION_ERROR", f"Property values were not valid: {detail}")


def timestamp() -> str:
    """Return the current time in UTC, ISO 8601, in seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
