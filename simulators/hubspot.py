"""HubSpot's contacts, as documented: an ASGI application with its limits and its errors, and faults on demand.

Sources: developers.hubspot.com, "CRM contacts v3", "Error handling", "Usage details"; what an e-mail clash answers:
HubSpot/hubspot-api-nodejs#545. The account has the properties of a contact that people use, and ``leadstream_*``.

Documented and kept: at most 100 inputs a batch; one input a key; an unknown property fails the batch; with a unique
objectWriteTraceId on every input errors are per input (207), else one bad input fails all and nothing is written;
e-mail addresses and unique properties are unique; ``new`` says created; merging moves the loser's id to the survivor;
private apps get 190 calls in any 10 s and 650,000 a day; the bodies and headers of 401 and 429.

For tests, under ``/_simulator`` (no token, no limit): ``GET stats``; ``POST faults`` ``{"status": 503, "share": 0.1}``
or ``{"latency_ms": 50}`` or ``{"timeout_share": 0.1}`` (waits 60 s), ``{}`` ends them; ``POST limits``
``{"per_10s": 190, "daily": 650000}``.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from simulators._hubspot_contacts import UNIQUE, Contacts

_MOST = 100
_EMAIL = re.compile(r"[^@\s,;]+@[^@\s,;]+\.[A-Za-z]{2,}")
_KNOWN = {
    *("email", "phone", "mobilephone", "firstname", "lastname", "company", "website", "jobtitle", "country", "state"),
    *("city", "zip", "address", "industry", "lifecyclestage", "hs_lead_status", "leadstream_lead_id"),
    *("leadstream_status", "leadstream_owner", "leadstream_employees", "leadstream_score"),
    *("leadstream_first_touch_source", "leadstream_last_touch_source"),
}
_ERROR_STATUS = {"CONFLICT": 409, "OBJECT_NOT_FOUND": 404}

Error = dict[str, Any]


class HubSpot:
    """The account: its contacts, its limits, what tests asked for, and what it counted."""

    def __init__(self, state: Path, clock: Callable[[], float], seed: int) -> None:
        self.contacts = Contacts(state / "hubspot.jsonl")
        self._clock = clock
        self._random = random.Random(seed)
        self._limits = {"per_10s": 190, "daily": 650_000}
        self._calls: deque[float] = deque()
        self._today = 0
        self._faults: dict[str, float] = {}
        self.stats = dict.fromkeys(("calls", "creates", "updates", "archived", "merges", "rejected", "limited"), 0)

    # -- the door ----------------------------------------------------------------------------------------------------

    async def enter(self, request: Request) -> Response | None:
        """Count the call; return the answer of one that does not get further."""
        self.stats["calls"] += 1
        if self._faults:
            if latency := self._faults.get("latency_ms"):
                await asyncio.sleep(latency / 1000)
            if self._random.random() < self._faults.get("timeout_share", 0):
                await asyncio.sleep(60)
            if "status" in self._faults and self._random.random() < self._faults.get("share", 1):
                return _failure(int(self._faults["status"]), "FAULT", "Fault on demand.")
        if not request.headers.get("authorization", "").startswith("Bearer pat-"):
            text = "Authentication credentials not found. This API supports OAuth 2.0 authentication."
            return _failure(401, "INVALID_AUTHENTICATION", text)
        return self._limit()

    def _limit(self) -> Response | None:
        now = self._clock()
        while self._calls and self._calls[0] <= now - 10:
            self._calls.popleft()
        policy = ""
        if self._today >= self._limits["daily"]:
            policy = "DAILY"
        elif len(self._calls) >= self._limits["per_10s"]:
            policy = "TEN_SECONDLY_ROLLING"
        if not policy:
            self._calls.append(now)
            self._today += 1
            return None
        self.stats["limited"] += 1
        body = {"status": "error", "message": f"You have reached your {policy.lower()} limit.", "policyName": policy}
        body |= {"errorType": "RATE_LIMIT", "correlationId": str(uuid.uuid4()), "requestId": str(uuid.uuid4())}
        return Response(orjson.dumps(body), 429, self.headers(), "application/json")

    def headers(self) -> dict[str, str]:
        """Return the rate limit's headers, which every answer carries."""
        return {
            "X-HubSpot-RateLimit-Daily": str(self._limits["daily"]),
            "X-HubSpot-RateLimit-Daily-Remaining": str(max(0, self._limits["daily"] - self._today)),
            "X-HubSpot-RateLimit-Interval-Milliseconds": "10000",
            "X-HubSpot-RateLimit-Max": str(self._limits["per_10s"]),
            "X-HubSpot-RateLimit-Remaining": str(max(0, self._limits["per_10s"] - len(self._calls))),
        }

    # -- contacts ----------------------------------------------------------------------------------------------------

    def upsert(self, inputs: list[Any]) -> Response:
        """Create or update by a unique property."""
        return self._write(inputs, create=True)

    def update(self, inputs: list[Any]) -> Response:
        """Update by record id."""
        return self._write(inputs, create=False)

    def _write(self, inputs: list[Any], *, create: bool) -> Response:
        if wrong := _wrong_batch(inputs, create=create):
            return _answer(400, wrong)
        traces = [each.get("objectWriteTraceId") for each in inputs]
        traced = all(traces) and len(set(traces)) == len(traces)
        results, errors = [], []
        for each in inputs:
            found, error = self._check(each, create=create)
            if error is None:
                results.append(None if not traced else self._save(each, found))
                continue
            self.stats["rejected"] += 1
            if not traced:
                return _answer(_ERROR_STATUS.get(error["category"], 400), error)
            errors.append(error | {"context": {"objectWriteTraceId": [each["objectWriteTraceId"]]}})
        if not traced:
            results = [self._save(each, self._check(each, create=create)[0]) for each in inputs]
        body = {"status": "COMPLETE", "results": results, "startedAt": _now(), "completedAt": _now()}
        return _answer(207, body | {"numErrors": len(errors), "errors": errors}) if errors else _answer(200, body)

    def _check(self, each: Any, *, create: bool) -> tuple[str, Error | None]:
        properties = each["properties"]
        email = properties.get("email")
        if email and not _EMAIL.fullmatch(email):
            return "", _invalid("INVALID_EMAIL", "email", f"Email address {email} is invalid")
        found = self.contacts.find(str(each["id"]), each.get("idProperty", "") if create else "")
        if not found and not create:
            return "", _error("OBJECT_NOT_FOUND", "Could not get some CONTACT objects, they may be deleted")
        if other := self.contacts.clash(found, properties):
            return "", _error("CONFLICT", f"Contact already exists. Existing ID: {other}")
        return found, None

    def _save(self, each: Any, found: str) -> dict[str, Any]:
        self.stats["updates" if found else "creates"] += 1
        properties = each["properties"]
        if not found:
            properties = {each["idProperty"]: each["id"]} | properties
        contact_id = self.contacts.save(found, properties)
        answer = {"id": contact_id, "properties": properties, "createdAt": _now(), "updatedAt": _now()}
        answer |= {"archived": False, "new": not found}
        if trace := each.get("objectWriteTraceId"):
            answer["objectWriteTraceId"] = trace
        return answer

    def read(self, inputs: list[Any], by: str) -> Response:
        """Return what is there of ``inputs``; 207 when something is not."""
        if len(inputs) > _MOST:
            return _answer(400, _too_many())
        found = [self.contacts.find(str(each["id"]), by) for each in inputs]
        body: dict[str, Any] = {"status": "COMPLETE", "results": [self.contact(each) for each in found if each]}
        if missing := [str(each["id"]) for each, there in zip(inputs, found, strict=True) if not there]:
            error = _error("OBJECT_NOT_FOUND", "Could not get some CONTACT objects, they may be deleted")
            body |= {"numErrors": 1, "errors": [error | {"context": {"ids": missing}}]}
            return _answer(207, body)
        return _answer(200, body)

    def archive(self, inputs: list[Any]) -> Response:
        """Archive by record id; what is not there is no error."""
        if len(inputs) > _MOST:
            return _answer(400, _too_many())
        for each in inputs:
            if str(each["id"]) in self.contacts.by_id:
                self.contacts.drop(str(each["id"]))
                self.stats["archived"] += 1
        self.contacts.flush()
        return Response(status_code=204, headers=self.headers())

    def merge(self, primary: str, loser: str) -> Response:
        """Merge: values of the primary win, the id of the other leads to it from now on."""
        if primary not in self.contacts.by_id or loser not in self.contacts.by_id or primary == loser:
            return _failure(400, "VALIDATION_ERROR", "Unable to merge objects: one does not exist or was merged before")
        theirs = self.contacts.by_id[loser]
        self.contacts.drop(loser, primary)
        kept = self.contacts.by_id[primary]
        self.contacts.save(primary, {k: v for k, v in theirs.items() if v and not kept.get(k)})
        self.stats["merges"] += 1
        return _answer(200, self.contact(primary))

    def contact(self, contact_id: str) -> dict[str, Any]:
        """Return a contact as the API shows it."""
        return {"id": contact_id, "properties": self.contacts.by_id[contact_id], "archived": False}

    # -- tests -------------------------------------------------------------------------------------------------------

    def control(self, what: str, body: dict[str, Any]) -> dict[str, Any]:
        """Set faults or limits; return the counts."""
        if what == "faults":
            self._faults = body
        elif what == "limits":
            self._limits |= body
            self._calls.clear()
            self._today = 0
        return self.stats | {"records": len(self.contacts.by_id)}


def app(state: Path, *, clock: Callable[[], float] = time.monotonic, seed: int = 1) -> Starlette:
    """Return the simulator with its state in the folder ``state``."""
    hubspot = HubSpot(state, clock, seed)

    def route(path: str, method: str, handler: Callable[[Request, Any], Response]) -> Route:
        async def endpoint(request: Request) -> Response:
            raw = await request.body()
            if (refused := await hubspot.enter(request)) is not None:
                return refused
            try:
                response = handler(request, orjson.loads(raw) if raw else {})
            except (AttributeError, KeyError, TypeError, orjson.JSONDecodeError):
                return _failure(400, "VALIDATION_ERROR", "Invalid input JSON")
            hubspot.contacts.flush()
            response.headers.update(hubspot.headers())
            return response

        return Route(path, endpoint, methods=[method])

    async def control(request: Request) -> Response:
        raw = await request.body()
        return _answer(200, hubspot.control(request.path_params["what"], orjson.loads(raw) if raw else {}))

    def one(request: Request, _: Any) -> Response:
        by = request.query_params.get("idProperty", "")
        found = hubspot.contacts.find(request.path_params["id"], by)
        return (
            _answer(200, hubspot.contact(found)) if found else _failure(404, "OBJECT_NOT_FOUND", "resource not found")
        )

    def page(request: Request, _: Any) -> Response:
        limit, after = int(request.query_params.get("limit", 10)), int(request.query_params.get("after", 0))
        ids = sorted((i for i in hubspot.contacts.by_id if int(i) > after), key=int)
        body: dict[str, Any] = {"results": [hubspot.contact(each) for each in ids[:limit]]}
        return _answer(200, body | ({"paging": {"next": {"after": ids[limit - 1]}}} if len(ids) > limit else {}))

    def properties(_: Request, __: Any) -> Response:
        names = [{"name": name, "type": "string", "hasUniqueValue": name in UNIQUE} for name in sorted(_KNOWN)]
        return _answer(200, {"results": names})

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        hubspot.contacts.close()

    base = "/crm/v3/objects/contacts"
    return Starlette(
        lifespan=lifespan,
        routes=[
            route(f"{base}/batch/upsert", "POST", lambda _, body: hubspot.upsert(body["inputs"])),
            route(f"{base}/batch/update", "POST", lambda _, body: hubspot.update(body["inputs"])),
            route(f"{base}/batch/read", "POST", lambda _, b: hubspot.read(b["inputs"], b.get("idProperty", ""))),
            route(f"{base}/batch/archive", "POST", lambda _, body: hubspot.archive(body["inputs"])),
            route(f"{base}/merge", "POST", lambda _, b: hubspot.merge(b["primaryObjectId"], b["objectIdToMerge"])),
            route(base, "GET", page),
            route(f"{base}/{{id}}", "GET", one),
            route("/crm/v3/properties/contacts", "GET", properties),
            Route("/_simulator/{what}", control, methods=["GET", "POST"]),
        ],
    )


def _wrong_batch(inputs: list[Any], *, create: bool) -> Error | None:
    if len(inputs) > _MOST:
        return _too_many()
    ids = [str(each["id"]) for each in inputs]
    if len(set(ids)) < len(ids):
        return _error("VALIDATION_ERROR", "Duplicate IDs found in batch input: IDs must be unique")
    if create and any(each.get("idProperty") not in UNIQUE for each in inputs):
        return _error("VALIDATION_ERROR", "Unable to perform update/upsert by non-unique 0-1 property")
    for each in inputs:
        if unknown := each["properties"].keys() - _KNOWN:
            name = min(unknown)
            return _invalid("PROPERTY_DOESNT_EXIST", name, f'Property "{name}" does not exist')
    return None


def _too_many() -> Error:
    return _error("VALIDATION_ERROR", f"Invalid input: the batch holds more than {_MOST} inputs")


def _invalid(code: str, name: str, message: str) -> Error:
    detail = json.dumps([{"isValid": False, "message": message, "error": code, "name": name}])
    return _error("VALIDATION_ERROR", f"Property values were not valid: {detail}")


def _error(category: str, message: str) -> Error:
    return {"status": "error", "category": category, "message": message, "correlationId": str(uuid.uuid4())}


def _failure(status: int, category: str, message: str) -> Response:
    return _answer(status, _error(category, message))


def _answer(status: int, body: object) -> Response:
    return Response(orjson.dumps(body), status, media_type="application/json")


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
