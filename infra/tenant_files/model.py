"""The content of a tenant's file."""

from __future__ import annotations

import json
import re
import zoneinfo
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import phonenumbers
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from infra.tenant_files.sections import Section

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
"""The names of tenants, as in schemas/rules.py. The name of the file is the tenant."""

DEFAULT = "default"
"""The file ``default.yaml`` serves every tenant without a file of its own."""

_LEAD = Path(__file__).parents[2] / "schemas" / "lead.avsc"
_NOT_MERGED = ("lead_id", "tenant", "version", "merged_into", "created_at", "updated_at", "crm_ids", "consent")


def _is_region(region: str) -> str:
    if region not in phonenumbers.SUPPORTED_REGIONS:
        raise ValueError("must be the code of a country in two capital letters (ISO 3166), such as DE")
    return region


def _is_time_zone(name: str) -> str:
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("must be the name of a time zone (IANA), such as Europe/Berlin") from None
    return name


def _is_domain(text: str) -> str:
    if not re.fullmatch(r"[^\s@]+\.[^\s@.]+", text):
        raise ValueError("must be a domain, such as mail.example")
    return text.lower()


def _is_role(text: str) -> str:
    if not re.fullmatch(r"[^\s@]+", text):
        raise ValueError("must be the part of an address before the @, such as info")
    return text.lower()


def _is_field(name: str) -> str:
    if name not in lead_fields():
        raise ValueError(f"no such field of a lead; there are: {', '.join(lead_fields())}")
    return name


def _are_distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("a name is there twice")
    return names


@cache
def lead_fields() -> tuple[str, ...]:
    """Return the fields of a lead whose value has a source."""
    fields = json.loads(_LEAD.read_text("utf-8"))["fields"]
    names = (field["name"] for field in fields)
    return tuple(n for n in names if n not in _NOT_MERGED and not n.startswith(("first_touch", "last_touch")))


Text = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Region = Annotated[str, AfterValidator(_is_region)]
TimeZone = Annotated[str, AfterValidator(_is_time_zone)]
Domain = Annotated[str, AfterValidator(_is_domain)]
Role = Annotated[str, AfterValidator(_is_role)]
LeadField = Annotated[str, AfterValidator(_is_field)]
IdentityKind = Annotated[
    str, StringConstraints(pattern=r"^(external_id|email|phone|anonymous_id|crm:[a-z0-9_]{1,50})$")
]
Sources = Annotated[tuple[Text, ...], Field(min_length=1, max_length=50), AfterValidator(_are_distinct)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True)


class IdentityPolicy(_Part):
    """Additions to the identity policy of the product (streams/intake/identity.py)."""

    placeholders: tuple[Text, ...] = Field((), description="Identifier values that identify nobody, in any case.")
    weak_domains: tuple[Domain, ...] = Field((), description="Mail domains whose addresses are weak identifiers.")
    role_addresses: tuple[Role, ...] = Field(
        (), description="Parts before the @ of shared mailboxes, such as info: weak identifiers."
    )
    disposable_domains: tuple[Domain, ...] = Field((), description="Mail domains of disposable addresses.")
    caps: dict[IdentityKind, Annotated[int, Field(ge=1, le=10_000)]] = Field(
        default_factory=dict, description="Maximum number of identifiers of a kind that one lead can have."
    )


class Budget(_Part):
    """What enrichment may cost in a calendar period (UTC)."""

    credits: float = Field(ge=0, le=1e12, strict=False, description="Credits of all providers together.")
    per: Literal["day", "month"] = Field("month", description="The period: day or month.")


class Enrichment(_Part):
    """The data providers of the tenant, in the order in which they are asked."""

    providers: dict[str, Section] = Field(default_factory=dict, description="Name of the provider to its account.")
    budget: Budget | None = Field(None, description="No budget: no limit.")


class Tenant(_Part):
    """One tenant. Frozen; equal content is equal.

    ``name``: the tenant. ``file``: the name of its file without .yaml: the tenant's own, or ``default``.
    """

    name: str = ""
    file: str = ""
    phone_region: Region | None = Field(None, description="Country of phone numbers without a country code (ISO 3166).")
    time_zone: TimeZone = Field("UTC", description="Time zone (IANA).")
    identity: IdentityPolicy = IdentityPolicy()
    precedence: dict[LeadField, Sources] = Field(
        default_factory=dict, description="Field of the lead to sources, the one that wins first. Others follow."
    )
    crm: dict[str, Section] = Field(default_factory=dict, description="Name of the CRM to the tenant's account.")
    enrichment: Enrichment = Enrichment()
    campaigns: Path | None = Field(
        None,
        strict=False,
        description="Folder of the tenant's campaigns, from the folder of this file. They run only for its leads.",
    )
    sender: dict[str, Section] = Field(
        default_factory=dict, description="Name of the channel, such as email, to the tenant's account and sender."
    )

    @property
    def own_file(self) -> bool:
        """Whether the tenant has a file of its own."""
        return self.file != DEFAULT

    @property
    def sections(self) -> list[Section]:
        """The accounts of all connectors."""
        return [*self.crm.values(), *self.enrichment.providers.values(), *self.sender.values()]

    def section(self, kind: str, name: str) -> Section | None:
        """Return the section of a connector: ``kind`` is crm, provider or channel."""
        sections = {"crm": self.crm, "provider": self.enrichment.providers, "channel": self.sender}[kind]
        return sections.get(name)


SECTIONS: dict[str, tuple[str, ...]] = {
    "crm": ("crm",),
    "provider": ("enrichment", "providers"),
    "channel": ("sender",),
}
"""Kind of section -> its place in the file."""


def place(content: Any, path: tuple[str, ...]) -> Any:
    """Return the value at ``path`` of a file's content, or None."""
    for key in path:
        content = content.get(key) if isinstance(content, dict) else None
    return content
