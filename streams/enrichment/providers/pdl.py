"""People Data Labs: finds a person by e-mail address, phone number, or name and company.

- Requests are POST with a JSON body, so that no URL contains an e-mail address.
- A match costs one credit, "not found" is free.
- Plans without contact data return ``true`` instead of a value, so only strings and numbers are used.

Crash: the API has no idempotency key. A crash before the result is cached pays for one match twice.

Source: docs.peopledatalabs.com, "Person Enrichment API" (input parameters, output response, access and billing),
"Errors & Status Codes", "Usage Limits" (fixed window of 60 s; 1,000 calls per minute for paid plans, otherwise 100).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
import orjson
from pydantic import Field

from infra.http import Bucket, Unreachable, send
from infra.outcomes import Reason
from streams.enrichment.providers import Found, LookupFailed, LookupResult, NotFound, ProviderConfig, Query

NAME = "pdl"
_WINDOW_S = 60
_LIKELIHOOD_SCALE = 10  # PDL's likelihood is 1 to 10


class Config(ProviderConfig):
    """Settings LEADSTREAM_PROVIDER_PDL_*."""

    base_url: str = Field(
        "https://api.peopledatalabs.com", pattern=r"^https?://", description="Base URL of the provider's API."
    )
    min_likelihood: int = Field(6, ge=1, le=10, description='A match below this likelihood counts as "not found".')


# Field of PDL -> field of enrichment_completed.
MAPPING = {
    "first_name": "first_name",
    "last_name": "last_name",
    "job_title": "title",
    "job_company_name": "company",
    "job_company_website": "domain",
    "job_company_industry": "industry",
    "location_country": "country",
    "location_region": "region",
}
# Field of PDL -> key of "custom".
CUSTOM = {"linkedin_url": "linkedin", "job_company_size": "company_size", "job_title_role": "job_role"}

# HTTP status -> (reason, retryable).
ERRORS = {
    400: (Reason.REJECTED, False),
    401: (Reason.UNAUTHORIZED, False),
    402: (Reason.QUOTA, False),
    403: (Reason.UNAUTHORIZED, False),
    429: (Reason.RATE_LIMITED, True),
}


class PeopleDataLabs:
    """A :class:`streams.enrichment.providers.Provider` for People Data Labs."""

    name = NAME

    def __init__(self, config: Config, http: httpx.AsyncClient) -> None:
        self.config = config
        self._http = http
        self._bucket = Bucket(config.requests_per_minute, _WINDOW_S)

    def query(self, lead: Mapping[str, Any]) -> Query:
        """Return e-mail address and phone number; if the lead has neither, its full name and company."""
        query = {name: lead[name] for name in ("email", "phone") if lead.get(name)}
        company = lead.get("company") or lead.get("domain")
        if not query and lead.get("first_name") and lead.get("last_name") and company:
            query = {"first_name": lead["first_name"], "last_name": lead["last_name"], "company": company}
        return query

    async def wait_for_rate_limit(self) -> None:
        """Wait until the rate limit allows one call, and count the call."""
        await self._bucket.take()

    async def look_up(self, query: Query) -> LookupResult:
        """Make one call and return its result."""
        body = {**query, "min_likelihood": self.config.min_likelihood, "titlecase": True}
        headers = {"x-api-key": self.config.api_key.get_secret_value()}
        try:
            response = await send(self._http, "POST", "/v5/person/enrich", body=body, headers=headers, attempts=1)
        except Unreachable as error:
            return LookupFailed(error.reason, retryable=True)
        status = response.status_code
        if status == httpx.codes.OK:
            return _found(response.content)
        if status == httpx.codes.NOT_FOUND:
            return NotFound()
        default = (
            (Reason.UNAVAILABLE, True) if status >= httpx.codes.INTERNAL_SERVER_ERROR else (Reason.REJECTED, False)
        )
        reason, retryable = ERRORS.get(status, default)
        return LookupFailed(reason, retryable, f"status {status}")


def _found(content: bytes) -> LookupResult:
    try:
        body = orjson.loads(content)
        data, likelihood = body["data"], float(body["likelihood"])
        fields: dict[str, Any] = {field: data[key] for key, field in MAPPING.items() if _is_text(data.get(key))}
        custom = {field: data[key] for key, field in CUSTOM.items() if _is_text(data.get(key))}
    except (ValueError, TypeError, KeyError, AttributeError):
        return LookupFailed(Reason.UNAVAILABLE, retryable=True, detail="the response does not match the documentation")
    employees = data.get("job_company_employee_count")
    if isinstance(employees, int) and not isinstance(employees, bool) and employees > 0:
        fields["employees"] = employees
    if custom:
        fields["custom"] = custom
    return Found(fields, min(likelihood / _LIKELIHOOD_SCALE, 1.0), cost=1)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def connect(config: Config, http: httpx.AsyncClient) -> PeopleDataLabs:
    """Return the provider; ``http`` is a client whose base URL is ``config.base_url``."""
    return PeopleDataLabs(config, http)
