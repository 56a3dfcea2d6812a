"""The interface of data providers. Each file of this folder is one provider.

A file defines ``NAME``, ``Config`` (a subclass of :class:`ProviderConfig`, read from ``LEADSTREAM_PROVIDER_<NAME>_*``)
and ``connect(config, http) -> Provider``. A provider is used if its ``api_key`` is set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from infra.outcomes import Reason

# Fields of the event enrichment_completed that a provider may set; "custom" is for all other data.
FIELDS = frozenset(
    {"first_name", "last_name", "company", "domain", "title", "country", "region", "industry", "employees", "custom"}
)


class ProviderConfig(BaseModel):
    """The settings that every provider has."""

    model_config = ConfigDict(frozen=True)

    base_url: str = Field(pattern=r"^https?://", description="Base URL of the provider's API.")
    api_key: SecretStr = Field(SecretStr(""), description="API key. Empty: the provider is not used.")
    rank: int = Field(100, description="Providers are asked in the order of rank, then name, until one has data.")
    requests_per_minute: int = Field(1000, ge=1, le=10_000_000, description="Maximum calls per minute of one process.")
    connections: int = Field(16, ge=1, le=1000, description="Maximum concurrent calls of one process.")
    timeout_s: float = Field(2.0, gt=0, le=30, description="Timeout of one call, in seconds.")
    found_days: float = Field(90, gt=0, description="Days for which an answer with data is cached.")
    not_found_days: float = Field(7, gt=0, description='Days for which the answer "not found" is cached.')


@dataclass(frozen=True, slots=True)
class Found:
    """An answer with data: ``fields`` of :data:`FIELDS`, ``likelihood`` 0 to 1, ``cost`` in the provider's credits."""

    fields: Mapping[str, Any]
    likelihood: float | None = None
    cost: float = 0


@dataclass(frozen=True, slots=True)
class NotFound:
    """The provider has no data about the person, or is not confident enough that it is this person."""

    cost: float = 0


@dataclass(frozen=True, slots=True)
class LookupFailed:
    """The call failed. ``retryable``: the same call may succeed soon. ``detail`` contains no lead data or secret."""

    reason: Reason
    retryable: bool = False
    detail: str = field(default="")


Answer = Found | NotFound | LookupFailed
Question = Mapping[str, str]


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

    def question(self, lead: Mapping[str, Any]) -> Question:
        """Return the values of ``lead`` (every field of lead.avsc) to look up; empty if they are not sufficient."""
        ...

    async def wait_for_rate_limit(self) -> None:
        """Wait until the rate limit allows one call, and count the call."""
        ...

    async def ask(self, question: Question) -> Answer:
        """Make one call and return its answer; errors of the provider and of the network are LookupFailed."""
        ...
