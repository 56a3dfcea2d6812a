"""People Data Labs' person enrichment, as documented: an ASGI application with its limits and errors, faults on demand.

Sources: docs.peopledatalabs.com, "Person Enrichment API" (input parameters, output response, access and billing),
"Errors & Status Codes", "Usage Limits". Documented and kept: the key in ``X-Api-Key`` (or ``api_key``); GET or POST;
e-mail, phone, profile, or a name with a company, school or place must be given, else 400; 404 is no match, or none of
at least ``min_likelihood``, and free; 402 when the credits are used up; 429 past the limit of a fixed window of 60 s,
by default 1,000 calls (a paying account's; 100 for a free one); names come in lower case unless ``titlecase``; the
rate-limit and credit headers.

Whom it knows depends on the question's hash alone: about 70 of 100, the same ones always.

For tests, under ``/_simulator`` (no key, no limit): ``GET stats``; ``POST faults`` ``{"status": 503, "share": 0.1}`` or
``{"latency_ms": 50}`` or ``{"timeout_share": 0.1}`` (waits 60 s) or ``{"junk": true}``, ``{}`` ends them; ``POST
limits`` ``{"per_minute": 60000, "credits": 1000000}``. A file ``pdl.json`` in the state folder with the same content as
limits is read at the start.
"""

from __future__ import annotations

import asyncio
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

WINDOW_S = 60.0
_KNOWN_OF_100 = 70
_TYPES = {400: "invalid_request_error", 401: "authentication_error", 402: "payment_required", 404: "not_found"}
_TYPES |= {405: "invalid_request_error", 429: "rate_limit_error", 500: "api_error"}

_FIRST = ("ada", "grace", "alan", "edsger", "barbara", "donald", "frances", "ken", "margaret", "tim")
_LAST = ("lovelace", "hopper", "turing", "dijkstra", "liskov", "knuth", "allen", "thompson", "hamilton", "lee")
_ROLES = ("engineering", "sales", "marketing", "finance", "operations")
_LEVELS = ("cxo", "vp", "director", "manager", "senior")
_COMPANIES = ("example", "acme example", "northwind example", "globex example", "initech example", "umbrella example")
_INDUSTRIES = ("computer software", "financial services", "retail", "hospital & health care", "automotive")
_SIZES = (("1-10", 7), ("11-50", 34), ("51-200", 120), ("201-500", 340), ("1001-5000", 2600), ("10001+", 41_000))
_PLACES = (
    ("united states", "california"),
    ("united kingdom", "england"),
    ("germany", "berlin"),
    ("india", "karnataka"),
)

Answer = tuple[int, dict[str, Any]]


class PeopleDataLabs:
    """The account: its limit, its credits, what tests asked for, and what it counted."""

    def __init__(self, per_minute: int, credits_left: int, clock: Callable[[], float], seed: int) -> None:
        self.limits = {"per_minute": per_minute, "credits": credits_left}
        self.faults: dict[str, float] = {}
        self.stats = dict.fromkeys(("calls", "matched", "not_found", "rejected", "limited", "credits_spent"), 0)
        self._clock = clock
        self._random = random.Random(seed)
        self._window = (0, 0)  # which one, calls in it

    async def enrich(self, request: Request) -> Response:
        """Answer one enrichment."""
        self.stats["calls"] += 1
        try:
            body = await request.body()
        except ClientDisconnect:
            return Response(status_code=499)  # nobody hears it
        broken = await self._fault()
        if broken is not None:
            return broken
        given = dict(request.query_params)
        if request.method == "POST":
            try:
                given |= orjson.loads(body or b"{}")
            except (ValueError, TypeError):
                return self._answer(_error(400, "The request body is not a JSON object."))
        key = request.headers.get("x-api-key") or given.pop("api_key", "")
        if not key or key == "wrong":
            return self._answer(_error(401, "The API key is missing or invalid."))
        if not self._within_limit():
            self.stats["limited"] += 1
            return self._answer(_error(429, "You have reached your account's rate limit."))
        return self._answer(self._look_up(given))

    def _look_up(self, given: dict[str, Any]) -> Answer:
        question = _question(given)
        likelihood = given.get("min_likelihood", 2)
        if not question:
            return _error(400, "Not enough input: give email, phone, profile, or a name with company, school or place.")
        if not str(likelihood).isdigit() or not 1 <= int(likelihood) <= 10:  # noqa: PLR2004 - documented bounds
            return _error(400, "min_likelihood must be an integer from 1 to 10.")
        if self.limits["credits"] <= 0:
            return _error(402, "You have hit your account's maximum for person enrichment (all matches used).")
        found = person(question, titlecase=str(given.get("titlecase", "false")).lower() == "true")
        if found is None or found["likelihood"] < int(likelihood):
            return _error(404, "No records were found matching your request")
        self.limits["credits"] -= 1
        self.stats["credits_spent"] += 1
        return 200, found

    def _answer(self, answer: Answer) -> Response:
        status, body = answer
        counted = {200: "matched", 404: "not_found", 429: "limited"}.get(status, "rejected")
        if status != 429:  # noqa: PLR2004 - counted where it is found
            self.stats[counted] += 1
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

    async def _fault(self) -> Response | None:
        if not self.faults:
            return None
        if latency := self.faults.get("latency_ms"):
            await asyncio.sleep(latency / 1000)
        if self._random.random() < self.faults.get("timeout_share", 0):
            await asyncio.sleep(60)
        if self.faults.get("junk"):
            return Response("<html>maintenance</html>", 200, media_type="text/html")
        if "status" in self.faults and self._random.random() < self.faults.get("share", 1):
            return self._answer(_error(int(self.faults["status"]), "Fault on demand."))
        return None


def person(question: str, *, titlecase: bool = False) -> dict[str, Any] | None:
    """Return what the service answers to ``question`` (what identifies a person), None for one it does not know."""
    roll = random.Random(hashlib.sha256(question.lower().encode()).digest())
    if roll.randrange(100) >= _KNOWN_OF_100:
        return None
    first, last = roll.choice(_FIRST), roll.choice(_LAST)
    role, level, company = roll.choice(_ROLES), roll.choice(_LEVELS), roll.choice(_COMPANIES)
    size, employees = roll.choice(_SIZES)
    country, region = roll.choice(_PLACES)
    data: dict[str, Any] = {
        "id": hashlib.sha256(question.encode()).hexdigest()[:28] + "_0000",
        "full_name": f"{first} {last}",
        "first_name": first,
        "last_name": last,
        "sex": None,
        "linkedin_url": f"linkedin.com/in/{first}-{last}-example",
        "work_email": True,  # on plans without contact data these say only that there is one
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


def _question(given: dict[str, Any]) -> str:
    for name in ("email", "phone", "profile"):
        if given.get(name):
            return f"{name}:{given[name]}"
    named = given.get("name") or (given.get("first_name") and given.get("last_name"))
    where = given.get("company") or given.get("school") or given.get("location")
    name = given.get("name") or f"{given.get('first_name')} {given.get('last_name')}"
    return f"name:{name}@{where}" if named and where else ""


def _error(status: int, message: str) -> Answer:
    return status, {"status": status, "error": {"type": _TYPES.get(status, "api_error"), "message": message}}


def app(state: Path, *, per_minute: int = 1000, clock: Callable[[], float] = time.time, seed: int = 1) -> Starlette:
    """Return the simulator. ``per_minute``: the account's limit; ``state/pdl.json`` goes before it."""
    service = PeopleDataLabs(per_minute, 1_000_000, clock, seed)
    kept = state / "pdl.json"
    if kept.exists():
        service.limits |= orjson.loads(kept.read_bytes())

    async def stats(_: Request) -> Response:
        return Response(orjson.dumps(service.stats), media_type="application/json")

    async def faults(request: Request) -> Response:
        service.faults = orjson.loads(await request.body())
        return Response(status_code=204)

    async def limits(request: Request) -> Response:
        service.limits |= orjson.loads(await request.body())
        return Response(status_code=204)

    routes: list[tuple[str, str, Callable[[Request], Awaitable[Response]]]] = [
        ("/_simulator/stats", "GET", stats),
        ("/_simulator/faults", "POST", faults),
        ("/_simulator/limits", "POST", limits),
    ]
    own = [Route(path, endpoint, methods=[method]) for path, method, endpoint in routes]
    return Starlette(routes=[Route("/v5/person/enrich", service.enrich, methods=["GET", "POST"]), *own])
