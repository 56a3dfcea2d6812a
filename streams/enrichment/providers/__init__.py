"""What a provider is. One file a provider; the folder is the list.

A file defines ``NAME``, ``Config`` (a subclass of :class:`ProviderConfig`, read from ``LEADSTREAM_PROVIDER_<NAME>_*``)
and ``connect(config, http) -> Provider``. It is used when its ``api_key`` is set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from infra.outcomes import Reason

# Fields of the event enrichment_completed that a provider may fill; "custom" takes what else it tells.
FIELDS = frozenset(
    {"first_name", "last_name", "company", "domain", "title", "country", "region", "industry", "employees", "custom"}
)


class ProviderConfig(BaseModel):
    """What every provider's settings have."""

    model_config = ConfigDict(frozen=True)

    base_url: str = Field(pattern=r"^https?://")
    api_key: SecretStr = Field(SecretStr(""), description="Empty: the provider is not used.")
    rank: int = Field(100, description="Providers are asked by rising rank, then by name; the first good answer wins.")
    requests_per_minute: int = Field(1000, ge=1, le=10_000_000, description="Calls of this process.")
    connections: int = Field(16, ge=1, le=1000, description="Calls of this process at the same time.")
    timeout_s: float = Field(2.0, gt=0, le=30, description="Longest wait for one answer.")
    found_days: float = Field(90, gt=0, description="How long an answer is kept and not paid for again.")
    not_found_days: float = Field(7, gt=0, description="How long a provider that knew nothing is not asked again.")


@dataclass(frozen=True, slots=True)
class Found:
    """A good answer: ``fields`` as in :data:`FIELDS`, ``likelihood`` 0 to 1, ``cost`` in the provider's credits."""

    fields: Mapping[str, Any]
    likelihood: float | None = None
    cost: float = 0


@dataclass(frozen=True, slots=True)
class NotFound:
    """The provider knows nobody like that, or is not sure enough."""

    cost: float = 0


@dataclass(frozen=True, slots=True)
class LookupFailed:
    """No answer. ``again``: the same call may well work in a moment. Never holds a value of the lead or a secret."""

    reason: Reason
    retryable: bool = False
    detail: str = field(default="")


Answer = Found | NotFound | LookupFailed
Question = Mapping[str, str]


class Provider(Protocol):
    """One provider, connected."""

    @property
    def name(self) -> str:
        """Its name, as in the file."""
        ...

    @property
    def config(self) -> ProviderConfig:
        """Its settings."""
        ...

    def question(self, lead: Mapping[str, Any]) -> Question:
        """Return what to ask about ``lead`` (fields of lead.avsc); empty: there is nothing to ask by."""
        ...

    async def wait_for_rate_limit(self) -> None:
        """Wait until the provider's rate limit has room for one call."""
        ...

    async def ask(self, question: Question) -> Answer:
        """Make one call. Raises nothing but bugs: whatever the other side does is an :data:`Answer`."""
        ...
