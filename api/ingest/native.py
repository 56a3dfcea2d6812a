"""POST /v1/events and POST /v1/validate: the native format of events, as JSON, NDJSON or one Avro payload.

Status 202: all events are accepted; 207: some; 400: none; 403: the key may send none; 503: at least one is
``unknown`` (send those again with the same event_id). The body has an item for each event, in the order of the request:
``{"accepted": n, "events": [{"index", "event_id", "status", ...}]}``.

Guarantees: an event that is not valid JSON is rejected alone, in an array as in NDJSON; a truncated body is refused
whole. Events are checked in slices of a few milliseconds, so that other requests are answered in between. (A thread
would not help: the work holds the interpreter's lock.)
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Collection, Sequence
from time import perf_counter
from typing import TypeVar

import orjson
from starlette.requests import Request
from starlette.responses import Response

from api import body as bodies
from api.auth import caller
from api.errors import Refusal, error, json_response
from api.ingest.accept import Acceptor, Checked, Checker, InvalidEvent, Item, not_json, numbered
from api.ingest.elements import elements
from infra import telemetry
from infra.keys import ApiKey
from infra.outcomes import Reason
from schemas.senders import Sender

MAX_EVENTS = 500
MAX_BYTES = 4 << 20
_SLICE_S = 0.005
_BLANK_LINES = re.compile(rb"\n\s+")
_JSON = {"application/json", "text/json"}
_NDJSON = {"application/x-ndjson", "application/ndjson", "application/jsonl"}
_AVRO = {"application/avro", "application/vnd.leadstream", "avro/binary"}

# What a page of any origin may send without asking the browser's permission (navigator.sendBeacon does).
_TEXT = {"text/plain"}

T = TypeVar("T")


def sender_of(key: ApiKey) -> Sender:
    """Return what a key permits to send."""
    return Sender(key.own_tenant, key.scopes, f"the key {key.id}")


class Native:
    """The two endpoints.

    Args:
        checker: validates events.
        acceptor: delivers events.
        origins: pages of these origins may send ``text/plain`` (``*``: of any); programs, without an Origin, may too.

    """

    def __init__(self, checker: Checker, acceptor: Acceptor, origins: Collection[str] = ()) -> None:
        self._checker = checker
        self._acceptor = acceptor
        self._origins = origins

    async def events(self, request: Request) -> Response:
        """POST /v1/events: accept events and return an item for each."""
        checked = await self._read(request)
        with telemetry.request("POST /v1/events", request.headers) as traceparent:
            accepted, items = await self._acceptor.accept(checked, traceparent)
        body: Item = {"accepted": accepted, "events": numbered(items)}
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
        return _graded({"valid": valid, "events": numbered(items)}, valid, 200)

    async def _read(self, request: Request) -> list[Checked]:
        kind, sender = self._kind(request), sender_of(caller(request))
        body = await bodies.read(request, MAX_BYTES)
        if not body.strip():
            raise Refusal("no_events", "the body is empty")
        if kind in _AVRO:
            return [self._checker.avro(body, sender)]
        body = bodies.as_utf8(body)
        if kind in _NDJSON or (kind in _TEXT and _has_lines(body)):
            return await _in_slices(self._checker.line, _lines(body), sender)
        return await self._documents(body, sender)

    def _kind(self, request: Request) -> str:
        """Return the media type. Raises Refusal if it is not supported, or not from this origin."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind and kind not in _JSON | _NDJSON | _AVRO | _TEXT:
            raise Refusal("unsupported_type", "this Content-Type is not supported: send application/json")
        origin = request.headers.get("origin")
        # Any other type is sent by a browser only after a preflight, which an origin that is not allowed does not pass.
        if (not kind or kind in _TEXT) and origin is not None and not {origin, "*"} & set(self._origins):
            raise Refusal("origin_not_allowed", "pages of this origin may not send events")
        return kind or "application/json"

    async def _documents(self, body: bytes, sender: Sender) -> list[Checked]:
        if self._checker.is_too_large(body) and body.lstrip()[:1] == b"{" and b'"events"' not in body:
            return [
                self._checker.line(body, sender)
            ]  # one event: rejected before it is parsed, which takes 50 ms for 4 MB
        try:
            document = orjson.loads(body)
        except ValueError as wrong:
            return await self._elements(body, wrong, sender)
        if isinstance(document, dict) and "events" in document and "type" not in document:
            document = document["events"]
            if not isinstance(document, list):
                raise Refusal("not_json", "`events` must be an array")
        documents = document if isinstance(document, list) else [document]
        _count(len(documents))
        return await _in_slices(self._checker.json, documents, sender)

    async def _elements(self, body: bytes, wrong: ValueError, sender: Sender) -> list[Checked]:
        """Check the elements of an array that is not valid JSON one by one."""
        texts = elements(body)
        if texts is None:
            raise Refusal("not_json", not_json(wrong))
        _count(len(texts))
        return await _in_slices(self._checker.line, texts, sender)


async def _in_slices(check: Callable[[T, Sender], Checked], events: Sequence[T], sender: Sender) -> list[Checked]:
    """Check events; let other requests run every few milliseconds."""
    checked: list[Checked] = []
    began = perf_counter()
    for event in events:
        if perf_counter() - began > _SLICE_S:
            await asyncio.sleep(0)
            began = perf_counter()
        checked.append(check(event, sender))
    return checked


def _lines(body: bytes) -> list[bytes]:
    text = _BLANK_LINES.sub(b"\n", body.strip())
    _count(1 + text.count(b"\n"))  # before millions of lines are made
    return text.split(b"\n")


def _has_lines(body: bytes) -> bool:
    """Return whether a text is NDJSON: its first line is an object, and there is another line."""
    first, _, rest = body.strip().partition(b"\n")
    first = first.strip()
    return bool(rest) and first[:1] == b"{" and first[-1:] == b"}"


def _count(events: int) -> None:
    if not events:
        raise Refusal("no_events", "the body contains no event")
    if events > MAX_EVENTS:
        raise Refusal("too_many_events", f"{events} events in one request; the maximum is {MAX_EVENTS}")


def _graded(body: Item, good: int, all_good: int) -> Response:
    if good == len(body["events"]):
        return json_response(all_good, body)
    if good:
        return json_response(207, body)
    if all(item.get("reason") == Reason.FORBIDDEN for item in body["events"]):
        return json_response(403, body | {"error": error("forbidden", body["events"][0]["problems"][0]["message"])})
    return json_response(400, body | {"error": error("none_accepted", "no event of the request is valid")})
