"""The topics of lead events: ``leads.received`` and one for each tenant, ``leads.received.<tenant>``.

The first is for the pipeline and for trusted services; it has events of every tenant. A tenant's topic is for its own
producers, by the broker's ACLs: an event of another tenant in it is dead (``forbidden``), as is one that only the
pipeline may send.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

SHARED = "leads.received"
_OF_TENANT = f"{SHARED}."
EVERY_TENANTS = r"^leads\.received\.[a-z0-9][a-z0-9_-]*$"
"""The topics of all tenants, as a pattern of a subscription."""
OF_TENANTS = f"{_OF_TENANT}*"
"""The name of their entry in topics.toml."""
_TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_OPEN = "default"  # the file that serves tenants without one of their own


def topic_of(tenant: str) -> str:
    """Return the topic of a tenant's own producers."""
    return _OF_TENANT + tenant


def tenant_of(topic: str) -> str:
    """Return the tenant whose topic this is; "" for every other topic."""
    return topic[len(_OF_TENANT) :] if topic.startswith(_OF_TENANT) else ""


def is_tenant(name: str) -> bool:
    """Return whether ``name`` can be the name of a tenant."""
    return _TENANT.fullmatch(name) is not None


def tenant_names(folder: Path) -> list[str]:
    """Return the tenants that have a file in ``folder``; none if there is no such folder."""
    names = sorted(file.stem for file in folder.glob("*.yaml"))
    return [name for name in names if name != _OPEN and is_tenant(name)]


def with_tenants(topics: Collection[str], existing: Iterable[str]) -> list[str]:
    """Return the ``topics`` of a consumer group, with those of tenants that exist if it reads lead events."""
    return [*topics, *sorted(filter(tenant_of, existing))] if SHARED in topics else list(topics)
