"""POST /v1/events and POST /v1/validate: the native format of events, as JSON, NDJSON or one Avro payload.

Status 202: all events are accepted; 207: some; 400: none; 503: at least one is ``unknown`` (send those again with the
same event_id). The body has an item for each event, in the order of the request:
``{"accepted": n, "events": [{"event_id", "status", ...}]}``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from api.errors import Refusal, error, json_response
from api.ingest.accept import Acceptor, Checked, Checker, InvalidEvent, Item
from infra import telemetry

MAX_EVENTS = 500
MAX_BYTES = 4 << 20
_READ_S = 30
_JSON = {"application/json", "text/json"}
_NDJSON = {"application/x-ndjson", "application/ndjson", "application/jsonl"}
_AVRO = {"application/avro", "application/vnd.leadstream", "avro/binary"}

# Raises Refusal if the caller may not send events.
Admit = Callable[[Request], Awaitable[None]]


async def everyone(_: Request) -> None:
    """Admit every caller: the API has no keys."""


class Native:
    """The two endpoints; ``admit`` checks the caller of a request."""

    def __init__(self, checker: Checker, acceptor: Acceptor, admit: Admit = everyone) -> None:
        self._checker = checker
        self._acceptor = acceptor
        self._admit = admit

    async def events(self, request: Request) -> Response:
        """POST /v1/events: accept events and return an item for each."""
        checked = await self._read(request)
        with telemetry.request("POST /v1/events", request.headers) as traceparent:
            accepted, items = await self._acceptor.accept(checked, traceparent)
        body: Item = {"accepted": accepted, "events": items}
        if unknown := sum(item["status"] == "unknown" for item in items):
            message = (
                f"the broker did not confirm {unknown} of {len(items)} events: send those with status unknown again"
            )
            return json_response(503, body | {"error": error("kafka_unavailable", message)}, {"Retry-After": "2"})
        return _graded(body, accepted, 202)

    async def validate(self, request: Request) -> Response:
        """POST /v1/validate: check events without writing them; valid ones have the status ``valid``."""
        checked = await self._read(request)
        items = [
            e.item if isinstance(e, InvalidEvent) else {"event_id": e.event_id, "status": "valid"} for e in checked
        ]
        valid = sum(item["status"] == "valid" for item in items)
        return _graded({"valid": valid, "events": items}, valid, 200)

    async def _read(self, request: Request) -> list[Checked]:
        await self._admit(request)
        kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise Refusal("unsupported_encoding", "a body with Content-Encoding is not supported: send it without")
        if kind not in _JSON | _NDJSON | _AVRO:
            raise Refusal("unsupported_type", "this Content-Type is not supported: send application/json")
        body = await _body(request)
        if not body.strip():
            raise Refusal("no_events", "the body is empty")
        if kind in _AVRO:
            return [self._checker.avro(body)]
        return self._lines(body) if kind in _NDJSON else self._documents(body)

    def _documents(self, body: bytes) -> list[Checked]:
        try:
            document = orjson.loads(body)
        except ValueError as wrong:
            raise Refusal("not_json", f"not JSON: {wrong}") from None
        if isinstance(document, dict) and "events" in document and "type" not in document:
            document = document["events"]
            if not isinstance(document, list):
                raise Refusal("not_json", "`events` must be an array")
        documents = document if isinstance(document, list) else [document]
        _count(len(documents))
        return [self._checker.json(each) for each in documents]

    def _lines(self, body: bytes) -> list[Checked]:
        lines = [line for line in body.split(b"\n") if line.strip()]
        _count(len(lines))
        return [self._checker.line(line) for line in lines]


def _count(events: int) -> None:
    if not events:
        raise Refusal("no_events", "the body contains no event")
    if events > MAX_EVENTS:
        raise Refusal("too_many_events", f"{events} events in one request; the maximum is {MAX_EVENTS}")


async def _body(request: Request) -> bytes:
    """Return the body. Raises Refusal if it is larger than its limit, with or without Content-Length."""
    too_large = Refusal("too_large", f"the body is larger than {MAX_BYTES} bytes")
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal() or int(announced) > MAX_BYTES:
        raise too_large
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(_READ_S):
            async for chunk in request.stream():
                size += len(chunk)
                if size > MAX_BYTES:
                    raise too_large
                chunks.append(chunk)
    except TimeoutError:
        raise Refusal("slow_request", f"the body did not arrive within {_READ_S} s") from None
    except ClientDisconnect:
        raise Refusal("slow_request", "the client closed the connection") from None
    return b"".join(chunks)


def _graded(body: Item, good: int, all_good: int) -> Response:
    if good == len(body["events"]):
        return json_response(all_good, body)
    if good:
        return json_response(207, body)
    return json_response(400, body | {"error": error("none_accepted", "no event of the request is valid")})
