"""Finds leads that today's identity policy would not have made, for ``leadstream leads audit``. Reads only."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from infra.clickhouse.client import ClickHouse
from infra.clock import to_datetime
from streams.intake.identity_policy import Policies

if TYPE_CHECKING:
    import asyncpg

_PREFETCH = 2000  # rows
_PAGE = 500  # merges
_EXAMPLES = 3  # identities of one finding

_IDENTITIES = """
SELECT lead_id::text, tenant, kind, value FROM identities WHERE $1 = '' OR tenant = $1 ORDER BY lead_id
"""
# Merges of two leads that were both identified; the moved identities are those of the merged lead.
_MERGES = """
SELECT survivor_id::text, loser_id::text, tenant, event_id, merged_at, identities::text AS moved,
    survivor->'attributes' AS survivor, loser->'attributes' AS loser
FROM lead_merges WHERE undone_at IS NULL AND ($1 = '' OR tenant = $1) ORDER BY merged_at
"""
_EVENTS = """
SELECT tenant, event_id, event_type, properties FROM lead_events_store
WHERE event_id IN {ids:Array(String)} LIMIT 1 BY tenant, event_id
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """A lead that today's policy would not have made.

    ``problem``: ``placeholder`` (an identity of the lead identifies nobody), ``form`` (an identity has another normal
    form today), ``cap`` (more identities of a kind than allowed), ``weak_merge`` (``other_lead_id`` was merged into the
    lead, both were identified, and only weak identities connected them). ``unknown_event``: as weak_merge, if the event
    that merged them is not in ClickHouse any more, so that nobody can tell. ``examples``: identities, or the event.
    """

    tenant: str
    lead_id: str
    problem: str
    kind: str = ""
    count: int = 1
    examples: tuple[str, ...] = ()
    other_lead_id: str = ""
    at: str = ""


async def audit(
    postgres: asyncpg.Connection, clickhouse: ClickHouse, tenant: str, policies: Policies
) -> AsyncIterator[Finding]:
    """Yield the findings of all leads of a tenant ("": of all). Uses little memory, however many leads there are."""
    async with postgres.transaction(readonly=True):
        lead = LeadIdentities(policies)
        async for lead_id, of_tenant, kind, value in postgres.cursor(_IDENTITIES, tenant, prefetch=_PREFETCH):
            if lead_id != lead.lead_id:
                for finding in lead.findings():
                    yield finding
                lead = LeadIdentities(policies, of_tenant, lead_id)
            lead.add(kind, value)
        for finding in lead.findings():
            yield finding
        page: list[Any] = []
        async for row in postgres.cursor(_MERGES, tenant, prefetch=_PAGE):
            page.append(row)
            if len(page) == _PAGE:
                async for finding in _of_merges(page, clickhouse, policies):
                    yield finding
                page = []
        async for finding in _of_merges(page, clickhouse, policies):
            yield finding


class LeadIdentities:
    """The identities of one lead, however many: counts and a few examples."""

    def __init__(self, policies: Policies, tenant: str = "", lead_id: str = "") -> None:
        self.lead_id = lead_id
        self._tenant = tenant
        self._policy = policies(tenant)
        self._counts: Counter[str] = Counter()
        self._wrong: Counter[tuple[str, str]] = Counter()
        self._examples: dict[tuple[str, str], list[str]] = {}

    def add(self, kind: str, value: str) -> None:
        """Add an identity."""
        self._counts[kind] += 1
        today = dict(self._policy.identify(as_identifiers(kind, value)))
        if today.get(kind) == value:
            return
        problem = ("form" if today else "placeholder", kind)
        self._wrong[problem] += 1
        examples = self._examples.setdefault(problem, [])
        if len(examples) < _EXAMPLES:
            examples.append(value)

    def findings(self) -> Iterator[Finding]:
        """Yield what is wrong with the identities."""
        for (problem, kind), count in sorted(self._wrong.items()):
            examples = tuple(self._examples[problem, kind])
            yield Finding(self._tenant, self.lead_id, problem, kind, count, examples)
        for kind, count in sorted(self._counts.items()):
            if count > self._policy.cap(kind):
                yield Finding(self._tenant, self.lead_id, "cap", kind, count)


def as_identifiers(kind: str, value: str) -> dict[str, Any]:
    """Return a stored identity as the identifiers of an event."""
    identifiers: dict[str, Any] = dict.fromkeys(("external_id", "email", "phone", "anonymous_id"), "")
    if kind.startswith("crm:"):
        return identifiers | {"crm_ids": {kind[4:]: value}}
    return identifiers | {"crm_ids": {}, kind: value}


async def _of_merges(rows: Sequence[Any], clickhouse: ClickHouse, policies: Policies) -> AsyncIterator[Finding]:
    suspects = [row for row in rows if _both_identified(row, policies)]
    # An array parameter cannot hold an id with a quote or a backslash: such an event counts as unknown.
    ids = sorted({row["event_id"] for row in suspects if not {"'", "\\"} & set(row["event_id"])})
    found = await clickhouse.query(_EVENTS, ids=ids) if ids else []
    events = {(event["tenant"], event["event_id"]): event for event in found}
    for row in suspects:
        problem = _problem(row, events.get((row["tenant"], row["event_id"])), policies)
        if problem:
            at = to_datetime(row["merged_at"]).isoformat(timespec="seconds")
            examples = (row["event_id"],)
            ids_ = (row["tenant"], row["survivor_id"])
            yield Finding(*ids_, problem, examples=examples, other_lead_id=row["loser_id"], at=at)


def _both_identified(row: Any, policies: Policies) -> bool:
    policy = policies(row["tenant"])
    moved = any(policy.is_strong(kind, value) for kind, value in orjson.loads(row["moved"]))
    return moved and _has_strong(row["survivor"], row["tenant"], policies)


def _has_strong(attributes: str | None, tenant: str, policies: Policies) -> bool:
    known = orjson.loads(attributes or "{}")  # erased: none
    email = known.get("email", "")
    strong = bool(known.get("external_id") or known.get("crm_ids"))
    return strong or (bool(email) and policies(tenant).is_strong("email", email))


def _problem(row: Any, event: dict[str, Any] | None, policies: Policies) -> str:
    """Return what is wrong with a merge of two identified leads: "" if the event had a strong identity of each."""
    if event is None:
        return "unknown_event"
    if event["event_type"] == "leads_merged":
        return ""
    policy = policies(row["tenant"])
    identifiers = orjson.loads(event["properties"]).get("identifiers", {})
    strong = [each for each in policy.identify(identifiers) if policy.is_strong(*each)]
    moved = {(kind, value) for kind, value in orjson.loads(row["moved"])}
    of_loser = [each for each in strong if each in moved]
    return "" if of_loser and len(strong) > len(of_loser) else "weak_merge"
