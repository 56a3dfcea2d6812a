"""People Data Labs: requests, and the mapping of documented responses."""

from __future__ import annotations

from typing import Any

import httpx
import orjson
import pytest

from infra.outcomes import Reason
from streams.enrichment.providers import Found, LookupFailed, LookupResult, NotFound, pdl

LEAD = {"email": "", "phone": "", "first_name": "", "last_name": "", "company": "", "domain": ""}
DOCUMENTED = {
    "status": 200,
    "likelihood": 8,
    "data": {
        "first_name": "Ada",
        "last_name": "Lovelace",
        "job_title": "Head Of Engines",
        "job_company_name": "Example Ltd",
        "job_company_website": "example.com",
        "job_company_size": "11-50",
        "job_company_employee_count": 42,
        "location_country": "united kingdom",
        "mobile_phone": True,
        "linkedin_url": "linkedin.example/ada",
    },
}


async def look_up(status: int, body: Any, seen: list[httpx.Request] | None = None) -> LookupResult:
    def handler(request: httpx.Request) -> httpx.Response:
        if seen is not None:
            seen.append(request)
        return httpx.Response(status, json=body)

    config = pdl.Config(api_key="key")
    async with httpx.AsyncClient(transport=httpx.MockTransport(handler), base_url=config.base_url) as http:
        provider = pdl.connect(config, http)
        return await provider.look_up(provider.query(LEAD | {"email": "ada@example.com"}))


async def test_the_documented_response_becomes_fields_of_the_lead() -> None:
    result = await look_up(200, DOCUMENTED)

    assert result == Found(
        {
            "first_name": "Ada",
            "last_name": "Lovelace",
            "title": "Head Of Engines",
            "company": "Example Ltd",
            "domain": "example.com",
            "country": "united kingdom",
            "employees": 42,
            "custom": {"linkedin": "linkedin.example/ada", "company_size": "11-50"},
        },
        0.8,
        cost=1,
    )


async def test_the_e_mail_address_is_in_the_body_and_the_key_in_a_header() -> None:
    seen: list[httpx.Request] = []
    await look_up(404, {"status": 404}, seen)

    assert "ada" not in str(seen[0].url)
    assert orjson.loads(seen[0].content)["email"] == "ada@example.com"
    assert seen[0].headers["x-api-key"] == "key"


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (404, NotFound()),
        (402, LookupFailed(Reason.QUOTA, retryable=False, detail="status 402")),
        (429, LookupFailed(Reason.RATE_LIMITED, retryable=True, detail="status 429")),
        (401, LookupFailed(Reason.UNAUTHORIZED, retryable=False, detail="status 401")),
    ],
)
async def test_a_status_code_has_this_meaning(status: int, expected: LookupResult) -> None:
    assert await look_up(status, {"status": status}) == expected


@pytest.mark.parametrize(
    ("known", "query"),
    [
        ({"email": "a@example.com", "company": "X"}, {"email": "a@example.com"}),
        (
            {"first_name": "A", "last_name": "B", "domain": "example.com"},
            {"first_name": "A", "last_name": "B", "company": "example.com"},
        ),
        ({"first_name": "A", "company": "X"}, {}),
    ],
)
def test_the_question_for_a_lead_with_these_values(known: dict[str, str], query: dict[str, str]) -> None:
    provider = pdl.connect(pdl.Config(api_key="key"), httpx.AsyncClient())

    assert provider.query(LEAD | known) == query
