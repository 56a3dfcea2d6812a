"""The identity policy: which identifiers identify somebody, how strongly, and how many a lead may have.

:mod:`schemas.identifiers` has the normal forms and the general placeholders, which the HTTP API applies too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from disposable_email_domains import blocklist

from infra.tenants import Tenant, Tenants
from schemas.identifiers import normal_identifiers

_WEAK = frozenset({"phone", "anonymous_id"})
_ROLES = frozenset({
    "abuse", "accounting", "accounts", "admin", "administrator", "all", "billing", "booking", "bookings", "careers",
    "contact", "contactus", "customerservice", "enquiries", "enquiry", "feedback", "finance", "frontdesk", "hello",
    "help", "helpdesk", "hi", "hostmaster", "hr", "info", "information", "inquiries", "inquiry", "invoice", "invoices",
    "it", "jobs", "kontakt", "legal", "mail", "mailbox", "marketing", "media", "news", "newsletter", "no-reply",
    "noreply", "donotreply", "do-not-reply", "office", "orders", "postmaster", "press", "privacy", "purchasing",
    "reception", "recruiting", "reservations", "root", "sales", "secretary", "security", "service", "services",
    "shop", "staff", "support", "team", "webmaster", "welcome",
})  # fmt: skip
_CAPS: Mapping[str, int] = {"external_id": 50, "email": 50, "phone": 50, "anonymous_id": 500}
_CRM_CAP = 20  # ids of one CRM


@dataclass(frozen=True, slots=True)
class IdentityPolicy:
    """What a tenant may change. Texts are in lower case.

    ``region``: the country of phone numbers without a country code, as two letters; "": they identify nobody.
    ``placeholders``: further ids, addresses and numbers that identify nobody. ``weak_addresses``: further local parts
    of roles. ``weak_domains``: further domains whose addresses are weak. ``caps``: maximum number of identities of a
    lead, by kind.
    """

    region: str = ""
    placeholders: frozenset[str] = frozenset()
    weak_addresses: frozenset[str] = frozenset()
    weak_domains: frozenset[str] = frozenset()
    caps: Mapping[str, int] = field(default_factory=dict)

    def identify(self, identifiers: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield the kind and the normal form of each of an event's identifiers that identifies somebody."""
        if not self.placeholders:
            yield from normal_identifiers(identifiers, self.region)
            return
        for kind, value in normal_identifiers(identifiers, self.region):
            if value.lower() not in self.placeholders:
                yield kind, value

    def is_strong(self, kind: str, value: str) -> bool:
        """Return whether an identity is of one person only."""
        if kind == "email":
            local, _, domain = value.rpartition("@")
            return not (_is_shared(local, domain) or local in self.weak_addresses or domain in self.weak_domains)
        return kind not in _WEAK

    def cap(self, kind: str) -> int:
        """Return the maximum number of a lead's identities of a kind."""
        return self.caps.get(kind) or _CAPS.get(kind, _CRM_CAP)


DEFAULT = IdentityPolicy()
Policies = Callable[[str], IdentityPolicy]  # by tenant


def default_policy(_tenant: str) -> IdentityPolicy:
    """Return the policy of a tenant without one of its own."""
    return DEFAULT


@lru_cache(maxsize=65_536)
def _is_shared(local: str, domain: str) -> bool:
    return local.partition("+")[0] in _ROLES or domain in blocklist


class TenantPolicies:
    """The policies of the tenants' files, as they are now."""

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants
        self._known: dict[str, tuple[Tenant, IdentityPolicy]] = {}

    def __call__(self, tenant: str) -> IdentityPolicy:
        """Return the policy of a tenant; the general one if the tenant is not served."""
        file = self._tenants.get(tenant)
        if file is None:
            return DEFAULT
        # All tenants of default.yaml share its parts, and with them one policy.
        known = self._known.get(file.file)
        if known is None or known[0].identity is not file.identity or known[0].phone_region != file.phone_region:
            known = self._known[file.file] = file, _policy_of(file)
        return known[1]


def _policy_of(file: Tenant) -> IdentityPolicy:
    own = file.identity
    return IdentityPolicy(
        region=file.phone_region or "",
        placeholders=frozenset(text.lower() for text in own.placeholders),
        weak_addresses=frozenset(text.lower() for text in own.role_addresses),
        weak_domains=frozenset(text.lower() for text in (*own.weak_domains, *own.disposable_domains)),
        caps=own.caps,
    )
