"""HubSpot's contacts API as an ASGI application, with the documented limits and errors, and with faults for tests.

The account has the contact properties that leads use, and the ``leadstream_*`` properties. It follows the documentation
in these points:

- A batch has at most 100 inputs, each key once. An unknown property fails the batch. With a unique objectWriteTraceId
  on every input, errors are per input (status 207); otherwise one wrong input fails the batch and nothing is written.
- E-mail addresses, also additional ones, and unique properties are unique. ``new`` is true if an upsert created the
  contact. After a merge the id of the merged contact finds the surviving one, and its address is an additional one.
- GDPR delete (by id, or by e-mail address) removes a contact for good: 204, or 404 for an unknown id.
- A private app has 190 calls in any 10 seconds and 650,000 calls a day. The bodies and headers of 401 and 429.

Endpoints for tests, under ``/_simulator``, without token and limits: ``GET stats``; ``POST faults`` with
``{"status": 503, "share": 0.1}``, ``{"latency_ms": 50}`` or ``{"timeout_share": 0.1}`` (waits 60 s), ``{}`` clears
them; ``POST limits`` with ``{"per_10s": 190, "daily": 650000}``.

Source: developers.hubspot.com, "CRM contacts v3", "Error handling", "Usage details"; for the response to a duplicate
e-mail address, HubSpot/hubspot-api-nodejs#545.
"""

from __future__ import annotations

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

from simulators._faults import HttpFaults
from simulators._hubspot_api import ContactsApi
from simulators._hubspot_contacts import Contacts
from simulators._hubspot_responses import error_response, json_response


class HubSpotAccount:
    """A HubSpot account: its contacts, its limits, the faults that tests set, and its counters."""

    def __init__(self, state: Path, clock: Callable[[], float], seed: int) -> None:
        self.stats = dict.fromkeys(
            ("calls", "creates", "updates", "archived", "gdpr_deletes", "merges", "rejected", "limited"), 0
        )
        self.contacts = Contacts(state / "hubspot.jsonl")
        self.api = ContactsApi(self.contacts, self.stats)
        self._faults = HttpFaults(seed)
        self._clock = clock
        self._limits = {"per_10s": 190, "daily": 650_000}
        self._calls: deque[float] = deque()  # times of the calls of the last 10 s
        self._calls_today = 0

    async def admit(self, request: Request) -> Response | None:
        """Count the call and return None, or the error response when a fault, the token or a limit rejects it."""
        self.stats["calls"] += 1
        await self._faults.delay()
        if status := self._faults.status():
            return error_response(status, "FAULT", "Fault on demand.")
        if not request.headers.get("authorization", "").startswith("Bearer pat-"):
            text = "Authentication credentials not found. This API supports OAuth 2.0 authentication."
            return error_response(401, "INVALID_AUTHENTICATION", text)
        return self._apply_limits()

    def _apply_limits(self) -> Response | None:
        now = self._clock()
        while self._calls and self._calls[0] <= now - 10:
            self._calls.popleft()
        policy = ""
        if self._calls_today >= self._limits["daily"]:
            policy = "DAILY"
        elif len(self._calls) >= self._limits["per_10s"]:
            policy = "TEN_SECONDLY_ROLLING"
        if not policy:
            self._calls.append(now)
            self._calls_today += 1
            return None
        self.stats["limited"] += 1
        body = {"status": "error", "message": f"You have reached your {policy.lower()} limit.", "policyName": policy}
        body |= {"errorType": "RATE_LIMIT", "correlationId": str(uuid.uuid4()), "requestId": str(uuid.uuid4())}
        return Response(orjson.dumps(body), 429, self.limit_headers(), "application/json")

    def limit_headers(self) -> dict[str, str]:
        """Return the rate-limit headers, which every response carries."""
        return {
            "X-HubSpot-RateLimit-Daily": str(self._limits["daily"]),
            "X-HubSpot-RateLimit-Daily-Remaining": str(max(0, self._limits["daily"] - self._calls_today)),
            "X-HubSpot-RateLimit-Interval-Milliseconds": "10000",
            "X-HubSpot-RateLimit-Max": str(self._limits["per_10s"]),
            "X-HubSpot-RateLimit-Remaining": str(max(0, self._limits["per_10s"] - len(self._calls))),
        }

    def control(self, endpoint: str, body: dict[str, Any]) -> dict[str, Any]:
        """Run a test endpoint (``faults``, ``limits`` or ``stats``) and return the counters."""
        if endpoint == "faults":
            self._faults.values = body
        elif endpoint == "limits":
            self._limits |= body
            self._calls.clear()
            self._calls_today = 0
        return self.stats | {"records": len(self.contacts.by_id)}


def app(state: Path, *, clock: Callable[[], float] = time.monotonic, seed: int = 1) -> Starlette:
    """Return the simulator.

    Args:
        state: the folder that holds its contacts.
        clock: returns seconds; for the limit of 10 seconds.
        seed: of the random choice of requests that get a fault.

    """
    account = HubSpotAccount(state, clock, seed)
    api = account.api

    def route(path: str, method: str, handler: Callable[[Request, Any], Response]) -> Route:
        async def endpoint(request: Request) -> Response:
            raw = await request.body()
            if (rejected := await account.admit(request)) is not None:
                return rejected
            try:
                response = handler(request, orjson.loads(raw) if raw else {})
            except (AttributeError, KeyError, TypeError, orjson.JSONDecodeError):
                return error_response(400, "VALIDATION_ERROR", "Invalid input JSON")
            account.contacts.flush()
            response.headers.update(account.limit_headers())
            return response

        return Route(path, endpoint, methods=[method])

    async def control(request: Request) -> Response:
        raw = await request.body()
        return json_response(200, account.control(request.path_params["endpoint"], orjson.loads(raw) if raw else {}))

    def get(request: Request, _: Any) -> Response:
        return api.get(request.path_params["id"], request.query_params.get("idProperty", ""))

    def page(request: Request, _: Any) -> Response:
        return api.page(int(request.query_params.get("limit", 10)), int(request.query_params.get("after", 0)))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        account.contacts.close()

    base = "/crm/v3/objects/contacts"
    return Starlette(
        lifespan=lifespan,
        routes=[
            route(f"{base}/batch/upsert", "POST", lambda _, body: api.upsert(body["inputs"])),
            route(f"{base}/batch/update", "POST", lambda _, body: api.update(body["inputs"])),
            route(f"{base}/batch/read", "POST", lambda _, b: api.read(b["inputs"], b.get("idProperty", ""))),
            route(f"{base}/batch/archive", "POST", lambda _, body: api.archive(body["inputs"])),
            route(f"{base}/gdpr-delete", "POST", lambda _, b: api.gdpr_delete(b["objectId"], b.get("idProperty", ""))),
            route(f"{base}/merge", "POST", lambda _, b: api.merge(b["primaryObjectId"], b["objectIdToMerge"])),
            route(base, "GET", page),
            route(f"{base}/{{id}}", "GET", get),
            route("/crm/v3/properties/contacts", "GET", lambda *_: api.properties()),
            Route("/_simulator/{endpoint}", control, methods=["GET", "POST"]),
        ],
    )
