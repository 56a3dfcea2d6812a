"""What the front door says when it says no: one table of codes, one shape of answer.

Every error is ``{"error": {"code", "message", "docs"}}``; ``docs`` is a path of this same server that explains the
code and how to mend it. A message never repeats a value that was sent.
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
    """A kind of error: its HTTP status and, for the producer, what to do about it."""

    status: int
    mend: str


CODES: Mapping[str, Code] = {
    "not_json": Code(400, 'Send UTF-8 JSON: one event object, an array of them, or {"events": [...]}.'),
    "no_events": Code(400, "Send at least one event."),
    "none_accepted": Code(
        400, "Each item of `events` says which fields are wrong; GET /v1/schemas/{type} has the fields."
    ),
    "not_found": Code(404, "The paths are: POST /v1/events, POST /v1/validate, GET /v1/schemas, /v1/schemas/{type}."),
    "method_not_allowed": Code(405, "The Allow header has the methods of this path."),
    "slow_request": Code(408, "The body took too long to arrive. Send it again; nothing of it was taken."),
    "too_many_events": Code(413, "Send at most 500 events a request; several requests may run side by side."),
    "too_large": Code(413, "Send at most 4 MiB a request."),
    "unsupported_type": Code(
        415, "Send Content-Type application/json, application/x-ndjson or application/avro (one single-object event)."
    ),
    "unsupported_encoding": Code(415, "Send the body without Content-Encoding."),
    "kafka_away": Code(
        503,
        "The broker did not confirm. Send the items marked `unknown` again after Retry-After seconds with the same "
        "event_id: an event that did arrive is then counted once.",
    ),
    "overloaded": Code(503, "Too much is waiting for the broker. Nothing was taken; send it again after Retry-After."),
    "internal": Code(500, "A bug of ours, it is in the log. What was sent may or may not be taken; send it again."),
}


class Refusal(Exception):  # noqa: N818 - it is an answer, not a mistake
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
    """Answer what the router raises: no such path, no such method."""
    assert isinstance(raised, HTTPException)  # noqa: S101 - registered for this type only
    code = "method_not_allowed" if raised.status_code == 405 else "not_found"  # noqa: PLR2004
    return answer(raised.status_code, {"error": error(code, f"{request.method} here: {raised.detail}")}, raised.headers)


async def unexpected(request: Request, raised: Exception) -> Response:
    """Answer a bug: it is logged whole, the caller learns nothing of our inside."""
    log("api").error("unexpected error", exc_info=raised, extra={"fields": {"path": request.scope["path"]}})
    return answer(500, {"error": error("internal", "an unexpected error")})


async def explain(request: Request) -> Response:
    """GET /v1/errors/{code}: what the code means and how to mend it."""
    code = CODES.get(request.path_params["code"])
    if code is None:
        raise Refusal("not_found", f"no such code; known: {', '.join(CODES)}")
    return answer(200, {"code": request.path_params["code"], "status": code.status, "mend": code.mend})
