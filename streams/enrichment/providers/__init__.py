"""The interface of data providers. Each file of this folder is one provider.

A file defines ``NAME``, ``Config`` (a subclass of :class:`ProviderConfig`, read from ``LEADSTREAM_PROVIDER_<NAME>_*``)
and ``connect(config, http) -> Provider``. A provider is used if its ``api_key`` is set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from infra.outcomes import Reason

# Fields of the event enrichment_completed that a provider may set; "custom" is for all other data.
FIELDS = frozenset(
    {"first_name", "last_name", "company", "domain", "title", "country", "region", "industry", "employees", "custom"}
)


class ProviderConfig(BaseModel):
    """The settings that every provider has. ``process_fields`` are not of one account: a tenant's file has an order."""

    model_config = ConfigDict(frozen=True)
    process_fields: ClassVar[frozenset[str]] = frozenset({"rank"})

    base_url: str = Field(pattern=r"^https?://", description="Base URL of the provider's API.")
    api_key: SecretStr = Field(SecretStr(""), description="API key. Empty: the provider is not used.")
    rank: int = Field(100, description="Providers are called in the order of rank, then name, until one has data.")
    requests_per_minute: int = Field(1000, ge=1, le=10_000_000, description="Maximum calls per minute of one process.")
    connections: int = Field(16, ge=1, le=1000, description="Maximum concurrent calls of one process.")
    timeout_s: float = Field(2.0, gt=0, le=30, description="Timeout of one call, in seconds.")
    found_days: float = Field(90, gt=0, description="Days for which a result with data is cached.")
    not_found_days: float = Field(7, gt=0, description='Days for which the result "not found" is cached.')
    breaker_failures: int = Field(5, ge=1, le=1000, description="Consecutive failed calls after which calls stop.")
    breaker_s: float = Field(
        30, gt=0, le=3600, description="Seconds without calls after that; doubles while they fail."
    )
    breaker_max_s: float = Field(300, gt=0, le=86_400, description="Maximum of breaker_s while it doubles.")


@dataclass(frozen=True, slots=True)
class Found:
    """A result with data: ``fields`` of :data:`FIELDS`, ``likelihood`` 0 to 1, ``cost`` in the provider's credits."""

    fields: Mapping[str, Any]
    likelihood: float | None = None
    cost: float = 0


@dataclass(frozen=True, slots=True)
class NotFound:
    """The provider has no data about the person, or is not confident enough that it is this person."""

    cost: float = 0


@dataclass(frozen=True, slots=True)
class LookupFailed:
    """The call failed. ``detail``: contains no lead data, no secret.

    ``retryable``: the same call may succeed within seconds. ``until``: no call was made, because the provider's circuit
    breaker is open until then (microseconds since 1970); 0: a call was made.
    """

    reason: Reason
    retryable: bool = False
    detail: str = field(default="")
    until: int = 0

    @property
    def refused(self) -> bool:
        """Whether the provider refuses this query for good. Every other failure may be over at a later time."""
        return self.reason in (Reason.REJECTED, Reason.UNKNOWN_TENANT)


LookupResult = Found | NotFound | LookupFailed
Query = Mapping[str, str]


class Provider(Protocol):
    """A connected provider."""

    @property
    def name(self) -> str:
        """The provider's ``NAME``."""
        ...

    @property
    def config(self) -> ProviderConfig:
        """The provider's settings."""
        ...

    def query(self, lead: Mapping[str, Any]) -> Query:
        """Return the values to look up from ``lead``, which has every field of lead.avsc; empty if it has too few."""
        ...

    async def wait_for_rate_limit(self) -> None:
        """Wait until the rate limit allows one call, and count the call."""
        ...

    async def look_up(self, query: Query) -> LookupResult:
        """Make one call and return its result; errors of the provider and of the network are LookupFailed."""
        ...
