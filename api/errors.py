"""The errors of the API: the one table of codes, and the format of error responses.

Every error is ``{"error": {"code", "message", "docs"}}``. ``docs`` is a path of this server with an explanation of the
code and how to fix the request. A message never contains a value of the request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from infra.runtime import log

DOCS = "/v1/errors/"
_HEADERS = {401: {"WWW-Authenticate": 'Bearer realm="leadstream"'}, 503: {"Retry-After": "1"}}


@dataclass(frozen=True, slots=True)
class Code:
    """A kind of error: its HTTP status, and how the sender can fix it."""

    status: int
    fix: str


CODES: Mapping[str, Code] = {
    "not_json": Code(400, 'Send UTF-8 JSON: one event object, an array of them, or {"events": [...]}.'),
    "no_events": Code(400, "Send at least one event."),
    "none_accepted": Code(
        400, "Each item of `events` lists its invalid fields. GET /v1/schemas/{type} returns the fields of a type."
    ),
    "unauthorized": Code(
        401,
        "Send an API key as `Authorization: Bearer ls_...`, as the user name of Basic authentication, or as "
        "`X-Api-Key`. `leadstream keys create` makes one; the embedded stack's is in the file api.secret of its "
        "state folder.",
    ),
    "forbidden": Code(
        403,
        "Use a key of the tenant and with the scope that the message names: `leadstream keys list` shows the keys, "
        "`leadstream keys create --tenant TENANT --scope SCOPE` makes one.",
    ),
    "origin_not_allowed": Code(
        403,
        "Send application/json from a server, or add the page's origin, such as https://www.example.com, to "
        "LEADSTREAM_CORS_ORIGINS of the API.",
    ),
    "not_found": Code(
        404, "The paths are POST /v1/events, POST /v1/validate, GET /v1/schemas and GET /v1/schemas/{type}."
    ),
    "method_not_allowed": Code(405, "Use a method that the Allow header lists."),
    "slow_request": Code(408, "The body did not arrive in time. Send it again; none of its events was accepted."),
    "too_many_events": Code(413, "Send at most 500 events in one request. Requests may run concurrently."),
    "too_large": Code(413, "Send at most 4 MiB in one request."),
    "unsupported_type": Code(
        415,
        "Send Content-Type application/json, application/x-ndjson, text/plain with one of these, or application/avro "
        "(one single-object event).",
    ),
    "unsupported_encoding": Code(415, "Send the body without a Content-Encoding header."),
    "kafka_unavailable": Code(
        503,
        "The broker did not confirm every event in time. After Retry-After seconds, send the items with status "
        "`unknown` again with the same event_id: an event that was already stored counts once.",
    ),
    "keys_unavailable": Code(
        503, "Postgres, which has the API keys, is unavailable. No event was accepted; retry after Retry-After seconds."
    ),
    "overloaded": Code(
        503,
        "Too much work is waiting for the broker or for Postgres. No event was accepted; retry after Retry-After "
        "seconds.",
    ),
    "internal": Code(
        500,
        "An error of the server, which is logged. It is unknown whether events were accepted: send them again with "
        "the same event_id.",
    ),
}


class Refusal(Exception):  # noqa: N818 - a response, not a bug
    """A request is rejected with an error of :data:`CODES`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def json_response(status: int, content: Any, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response with ``content`` as JSON."""
    return Response(orjson.dumps(content), status, headers, "application/json")


def error(code: str, message: str) -> dict[str, str]:
    """Return the value of ``error`` in an error response."""
    return {"code": code, "message": message, "docs": DOCS + code}


async def refused(_: Request, refusal: Exception) -> Response:
    """Return the response to a :class:`Refusal`."""
    assert isinstance(refusal, Refusal)  # noqa: S101 - registered for this type only
    status = CODES[refusal.code].status
    return json_response(status, {"error": error(refusal.code, str(refusal))}, _HEADERS.get(status))


async def http_error(request: Request, raised: Exception) -> Response:
    """Return the response to an unknown path or method."""
    assert isinstance(raised, HTTPException)  # noqa: S101 - registered for this type only
    code = "method_not_allowed" if raised.status_code == 405 else "not_found"  # noqa: PLR2004
    return json_response(
        raised.status_code,
        {"error": error(code, f"{request.method} on this path: {raised.detail}")},
        raised.headers,
    )


async def unexpected(request: Request, raised: Exception) -> Response:
    """Log an unexpected exception and return status 500 without its details."""
    route = getattr(request.scope.get("route"), "path", "")  # not the path, which may hold personal data
    log("api").error("unexpected error", exc_info=raised, extra={"fields": {"route": route}})
    return json_response(500, {"error": error("internal", "the server could not handle the request")})


async def explain(request: Request) -> Response:
    """GET /v1/errors/{code}: return the status of a code and how to fix the request."""
    code = CODES.get(request.path_params["code"])
    if code is None:
        raise Refusal("not_found", f"unknown code; the codes are: {', '.join(CODES)}")
    return json_response(200, {"code": request.path_params["code"], "status": code.status, "fix": code.fix})
