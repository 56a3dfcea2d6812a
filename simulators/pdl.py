"""People Data Labs' person enrichment as an ASGI application, with the documented limits and errors, and with faults.

It follows the documentation in these points:

- GET or POST, with the key in ``X-Api-Key`` or ``api_key``.
- Status 400: the input has no e-mail address, phone or profile, and no name with a company, school or location.
- Status 404, without cost: no match, or no match of at least ``min_likelihood``.
- Status 402: no credits left.
- Status 429: more calls than the limit in a fixed window of 60 s. The default is that of a paid account, 1,000 calls; a
  free account has 100.
- Values are in lower case unless ``titlecase`` is set.
- The rate-limit and credit headers.

Whether an input has a match depends only on its hash: about 70 of 100 inputs have one.

Endpoints for tests, under ``/_simulator``, without key and limit: ``GET stats``; ``POST faults`` with
``{"status": 503, "share": 0.1}``, ``{"latency_ms": 50}``, ``{"timeout_share": 0.1}`` (waits 60 s) or ``{"junk": true}``
(an HTML page with status 200), ``{}`` clears them; ``POST limits`` with ``{"per_minute": 60000, "credits": 1000000}``.
The start reads limits from the file ``pdl.json`` in the state folder, if it exists.

Source: docs.peopledatalabs.com, "Person Enrichment API" (input parameters, output response, access and billing),
"Errors & Status Codes", "Usage Limits".
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from simulators._faults import HttpFaults

WINDOW_S = 60.0
_MATCHES_OF_100 = 70
_TYPES = {400: "invalid_request_error", 401: "authentication_error", 402: "payment_required", 404: "not_found"}
_TYPES |= {405: "invalid_request_error", 429: "rate_limit_error", 500: "api_error"}

_FIRST = ("ada", "grace", "alan", "edsger", "barbara", "donald", "frances", "ken", "margaret", "tim")
_LAST = ("lovelace", "hopper", "turing", "dijkstra", "liskov", "knuth", "allen", "thompson", "hamilton", "lee")
_ROLES = ("engineering", "sales", "marketing", "finance", "operations")
_LEVELS = ("cxo", "vp", "director", "manager", "senior")
_COMPANIES = ("example", "acme example", "northwind example", "globex example", "initech example", "umbrella example")
_INDUSTRIES = ("computer software", "financial accounts", "retail", "hospital & health care", "automotive")
_SIZES = (("1-10", 7), ("11-50", 34), ("51-200", 120), ("201-500", 340), ("1001-5000", 2600), ("10001+", 41_000))
_PLACES = (
    ("united states", "california"),
    ("united kingdom", "england"),
    ("germany", "berlin"),
    ("india", "karnataka"),
)

Result = tuple[int, dict[str, Any]]  # status, body


class PdlAccount:
    """A People Data Labs account: its limit, its credits, the faults that tests set, and its counters."""

    def __init__(self, per_minute: int, credits_left: int, clock: Callable[[], float], seed: int) -> None:
        self.limits = {"per_minute": per_minute, "credits": credits_left}
        self.faults = HttpFaults(seed)
        self.stats = dict.fromkeys(("calls", "matched", "not_found", "rejected", "limited", "credits_spent"), 0)
        self._clock = clock
        self._window = (0, 0)  # number of the window, calls in it

    async def enrich(self, request: Request) -> Response:
        """Handle one enrichment request."""
        self.stats["calls"] += 1
        try:
            body = await request.body()
        except ClientDisconnect:
            return Response(status_code=499)  # the client has disconnected
        fault = await self._apply_faults()
        if fault is not None:
            return fault
        parameters = dict(request.query_params)
        if request.method == "POST":
            try:
                parameters |= orjson.loads(body or b"{}")
            except (ValueError, TypeError):
                return self._response(_error(400, "The request body is not a JSON object."))
        key = request.headers.get("x-api-key") or parameters.pop("api_key", "")
        if not key or key == "wrong":
            return self._response(_error(401, "The API key is missing or invalid."))
        if not self._within_limit():
            self.stats["limited"] += 1
            return self._response(_error(429, "You have reached your account's rate limit."))
        return self._response(self._look_up(parameters))

    def _look_up(self, parameters: dict[str, Any]) -> Result:
        lookup_key = _lookup_key(parameters)
        likelihood = parameters.get("min_likelihood", 2)
        if not lookup_key:
            message = "Not enough input: provide email, phone, profile, or a name with company, school or location."
            return _error(400, message)
        if not str(likelihood).isdigit() or not 1 <= int(likelihood) <= 10:  # noqa: PLR2004 - documented bounds
            return _error(400, "min_likelihood must be an integer from 1 to 10.")
        if self.limits["credits"] <= 0:
            return _error(402, "You have hit your account's maximum for person enrichment (all matches used).")
        found = person(lookup_key, titlecase=str(parameters.get("titlecase", "false")).lower() == "true")
        if found is None or found["likelihood"] < int(likelihood):
            return _error(404, "No records were found matching your request")
        self.limits["credits"] -= 1
        self.stats["credits_spent"] += 1
        return 200, found

    def _response(self, result: Result) -> Response:
        status, body = result
        counter = {200: "matched", 404: "not_found", 429: "limited"}.get(status, "rejected")
        if status != 429:  # noqa: PLR2004 - the caller has counted it
            self.stats[counter] += 1
        left = max(0, self.limits["per_minute"] - self._window[1])
        headers = {
            "x-ratelimit-limit": f"{{'minute': {self.limits['per_minute']}}}",
            "x-ratelimit-remaining": f"{{'minute': {left}}}",
            "x-call-credits-spent": "1" if status == 200 else "0",  # noqa: PLR2004 - a match
            "x-call-credits-type": "enrich",
            "x-totallimit-remaining": str(self.limits["credits"]),
        }
        return Response(orjson.dumps(body), status, headers, "application/json")

    def _within_limit(self) -> bool:
        window = int(self._clock() // WINDOW_S)
        calls = self._window[1] if self._window[0] == window else 0
        self._window = (window, calls + 1)
        return calls < self.limits["per_minute"]

    async def _apply_faults(self) -> Response | None:
        await self.faults.delay()
        if self.faults.values.get("junk"):
            return Response("<html>maintenance</html>", 200, media_type="text/html")
        if status := self.faults.status():
            return self._response(_error(status, "Fault on demand."))
        return None


def person(lookup_key: str, *, titlecase: bool = False) -> dict[str, Any] | None:
    """Return the body of the match for ``lookup_key``, such as ``email:ada@example.com``, or None for no match."""
    roll = random.Random(hashlib.sha256(lookup_key.lower().encode()).digest())
    if roll.randrange(100) >= _MATCHES_OF_100:
        return None
    first, last = roll.choice(_FIRST), roll.choice(_LAST)
    role, level, company = roll.choice(_ROLES), roll.choice(_LEVELS), roll.choice(_COMPANIES)
    size, employees = roll.choice(_SIZES)
    country, region = roll.choice(_PLACES)
    data: dict[str, Any] = {
        "id": hashlib.sha256(lookup_key.encode()).hexdigest()[:28] + "_0000",
        "full_name": f"{first} {last}",
        "first_name": first,
        "last_name": last,
        "sex": None,
        "linkedin_url": f"linkedin.com/in/{first}-{last}-example",
        "work_email": True,  # without contact data in the plan: only whether there is one
        "mobile_phone": False,
        "job_title": f"{level} of {role}",
        "job_title_role": role,
        "job_title_levels": [level],
        "job_company_name": company,
        "job_company_website": company.replace(" ", "-") + ".com",
        "job_company_size": size,
        "job_company_employee_count": employees,
        "job_company_industry": roll.choice(_INDUSTRIES),
        "location_country": country,
        "location_region": region,
        "skills": [],
    }
    if titlecase:
        texts = ("full_name", "first_name", "last_name", "job_title", "job_company_name", "job_company_industry")
        data |= {name: data[name].title() for name in (*texts, "location_country", "location_region")}
    return {"status": 200, "likelihood": roll.randint(4, 10), "data": data}


def _lookup_key(parameters: dict[str, Any]) -> str:
    for name in ("email", "phone", "profile"):
        if parameters.get(name):
            return f"{name}:{parameters[name]}"
    named = parameters.get("name") or (parameters.get("first_name") and parameters.get("last_name"))
    where = parameters.get("company") or parameters.get("school") or parameters.get("location")
    name = parameters.get("name") or f"{parameters.get('first_name')} {parameters.get('last_name')}"
    return f"name:{name}@{where}" if named and where else ""


def _error(status: int, message: str) -> Result:
    return status, {"status": status, "error": {"type": _TYPES.get(status, "api_error"), "message": message}}


def app(state: Path, *, per_minute: int = 1000, clock: Callable[[], float] = time.time, seed: int = 1) -> Starlette:
    """Return the simulator.

    Args:
        state: the folder that may hold ``pdl.json``, whose limits replace the defaults.
        per_minute: the limit of calls per minute.
        clock: returns seconds; for the window of the limit.
        seed: of the random choice of requests that get a fault.

    """
    account = PdlAccount(per_minute, 1_000_000, clock, seed)
    limits_file = state / "pdl.json"
    if limits_file.exists():
        account.limits |= orjson.loads(limits_file.read_bytes())

    async def stats(_: Request) -> Response:
        return Response(orjson.dumps(account.stats), media_type="application/json")

    async def faults(request: Request) -> Response:
        account.faults.values = orjson.loads(await request.body())
        return Response(status_code=204)

    async def limits(request: Request) -> Response:
        account.limits |= orjson.loads(await request.body())
        return Response(status_code=204)

    routes: list[tuple[str, str, Callable[[Request], Awaitable[Response]]]] = [
        ("/_simulator/stats", "GET", stats),
        ("/_simulator/faults", "POST", faults),
        ("/_simulator/limits", "POST", limits),
    ]
    own = [Route(path, endpoint, methods=[method]) for path, method, endpoint in routes]
    return Starlette(routes=[Route("/v5/person/enrich", account.enrich, methods=["GET", "POST"]), *own])
