"""People Data Labs: who is behind an e-mail address, a phone number, or a name at a company.

Sources: docs.peopledatalabs.com, "Person Enrichment API" (input parameters, output response, access and billing: a
credit a match, no match is free), "Errors & Status Codes", "Usage Limits" (fixed window of 60 s; 1,000 calls a minute
for paying accounts, 100 for free ones). POST with a JSON body, so that no e-mail address stands in a URL. There is no
idempotency key: a crash between the answer and our cache pays for one match twice. Plans without contact data answer
``true`` where they have a value, so only texts and numbers are taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
import orjson
from pydantic import Field

from infra.http import Bucket, Unreachable, send
from infra.outcomes import Reason
from streams.enrichment.providers import Answer, Found, LookupFailed, NotFound, ProviderConfig, Question

NAME = "pdl"
_WINDOW_S = 60
_SCALE = 10  # their likelihood is 1 to 10


class Config(ProviderConfig):
    """LEADSTREAM_PROVIDER_PDL_*."""

    base_url: str = Field("https://api.peopledatalabs.com", pattern=r"^https?://")
    min_likelihood: int = Field(6, ge=1, le=10, description="AnswerCache less likely than this count as no match.")


# Their field -> ours. Only what is set is sent.
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
CUSTOM = {"linkedin_url": "linkedin", "job_company_size": "company_size", "job_title_role": "job_role"}

# What its errors mean: reason, and whether to try again in a moment.
ERRORS = {
    400: (Reason.REJECTED, False),
    401: (Reason.UNAUTHORIZED, False),
    402: (Reason.QUOTA, False),
    403: (Reason.UNAUTHORIZED, False),
    429: (Reason.RATE_LIMITED, True),
}


class PeopleDataLabs:
    """The connected provider; see :class:`streams.enrichment.providers.Provider`."""

    name = NAME

    def __init__(self, config: Config, http: httpx.AsyncClient) -> None:
        self.config = config
        self._http = http
        self._bucket = Bucket(config.requests_per_minute, _WINDOW_S)

    def question(self, lead: Mapping[str, Any]) -> Question:
        """Ask by e-mail and phone; without both, by full name and company."""
        asked = {name: lead[name] for name in ("email", "phone") if lead.get(name)}
        company = lead.get("company") or lead.get("domain")
        if not asked and lead.get("first_name") and lead.get("last_name") and company:
            asked = {"first_name": lead["first_name"], "last_name": lead["last_name"], "company": company}
        return asked

    async def wait_for_rate_limit(self) -> None:
        """Wait for room in the limit."""
        await self._bucket.take()

    async def ask(self, question: Question) -> Answer:
        """Make one call."""
        body = {**question, "min_likelihood": self.config.min_likelihood, "titlecase": True}
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
        reason, again = ERRORS.get(status, (Reason.UNAVAILABLE, True) if status >= 500 else (Reason.REJECTED, False))  # noqa: PLR2004
        return LookupFailed(reason, again, f"status {status}")


def _found(content: bytes) -> Answer:
    try:
        body = orjson.loads(content)
        data, likelihood = body["data"], float(body["likelihood"])
        fields: dict[str, Any] = {ours: data[theirs] for theirs, ours in MAPPING.items() if _is_text(data.get(theirs))}
        custom = {ours: data[theirs] for theirs, ours in CUSTOM.items() if _is_text(data.get(theirs))}
    except (ValueError, TypeError, KeyError, AttributeError):
        return LookupFailed(Reason.UNAVAILABLE, retryable=True, detail="the answer is not what the documentation says")
    employees = data.get("job_company_employee_count")
    if isinstance(employees, int) and not isinstance(employees, bool) and employees > 0:
        fields["employees"] = employees
    if custom:
        fields["custom"] = custom
    return Found(fields, min(likelihood / _SCALE, 1.0), cost=1)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def connect(config: Config, http: httpx.AsyncClient) -> PeopleDataLabs:
    """Return the provider over ``http``, a client for ``config.base_url``."""
    return PeopleDataLabs(config, http)
