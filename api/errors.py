"""The errors of the API: one table of codes, one shape of response.

Every error is ``{"error": {"code", "message", "docs"}}``; ``docs`` is a path of this server that explains the code and
how to fix the request. A message never repeats a value that was sent.
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


@dataclass(frozen=True, slots=True)
class Code:
    """A kind of error: its HTTP status, and how the sender fixes it."""

    status: int
    fix: str


CODES: Mapping[str, Code] = {
    "not_json": Code(400, 'Send UTF-8 JSON: one event object, an array of them, or {"events": [...]}.'),
    "no_events": Code(400, "Send at least one event."),
    "none_accepted": Code(
        400, "Each item of `events` names the wrong fields. GET /v1/schemas/{type} lists the fields of a type."
    ),
    "not_found": Code(404, "The paths are: POST /v1/events, POST /v1/validate, GET /v1/schemas, /v1/schemas/{type}."),
    "method_not_allowed": Code(405, "The Allow header has the methods of this path."),
    "slow_request": Code(408, "The body took too long to arrive. Send it again; nothing of it was accepted."),
    "too_many_events": Code(413, "Send at most 500 events in one request. Requests may run concurrently."),
    "too_large": Code(413, "Send at most 4 MiB in one request."),
    "unsupported_type": Code(
        415, "Send Content-Type application/json, application/x-ndjson or application/avro (one single-object event)."
    ),
    "unsupported_encoding": Code(415, "Send the body without a Content-Encoding header."),
    "kafka_unavailable": Code(
        503,
        "The broker did not confirm in time. After Retry-After seconds send the items marked `unknown` again with the "
        "same event_id: an event that did arrive counts once.",
    ),
    "overloaded": Code(
        503, "Too many events wait for the broker. Nothing was accepted; repeat the request after Retry-After seconds."
    ),
    "internal": Code(
        500,
        "A defect of the server; it is logged. Events may or may not have been accepted: send them again with the same "
        "event_id.",
    ),
}


class Refusal(Exception):  # noqa: N818 - a response, not a defect
    """A request that is answered with an error of :data:`CODES`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def answer(status: int, content: Any, headers: Mapping[str, str] | None = None) -> Response:
    """Return ``content`` as JSON."""
    return Response(orjson.dumps(content), status, headers, "application/json")


def error(code: str, message: str) -> dict[str, str]:
    """Return the inside of ``{"error": ...}``."""
    return {"code": code, "message": message, "docs": DOCS + code}


async def refused(_: Request, refusal: Exception) -> Response:
    """Answer a :class:`Refusal`."""
    assert isinstance(refusal, Refusal)  # noqa: S101 - registered for this type only
    status = CODES[refusal.code].status
    headers = {"Retry-After": "1"} if status == 503 else None  # noqa: PLR2004
    return answer(status, {"error": error(refusal.code, str(refusal))}, headers)


async def http_error(request: Request, raised: Exception) -> Response:
    """Answer what the router raises: an unknown path or method."""
    assert isinstance(raised, HTTPException)  # noqa: S101 - registered for this type only
    code = "method_not_allowed" if raised.status_code == 405 else "not_found"  # noqa: PLR2004
    return answer(raised.status_code, {"error": error(code, f"{request.method} here: {raised.detail}")}, raised.headers)


async def unexpected(request: Request, raised: Exception) -> Response:
    """Answer an unexpected exception: it is logged in full, and the response holds no detail of it."""
    log("api").error("unexpected error", exc_info=raised, extra={"fields": {"path": request.scope["path"]}})
    return answer(500, {"error": error("internal", "an unexpected error")})


async def explain(request: Request) -> Response:
    """GET /v1/errors/{code}: the status of a code and how to fix the request."""
    code = CODES.get(request.path_params["code"])
    if code is None:
        raise Refusal("not_found", f"unknown code; the codes are: {', '.join(CODES)}")
    return answer(200, {"code": request.path_params["code"], "status": code.status, "fix": code.fix})
