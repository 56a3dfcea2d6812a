"""Reads everything that Postgres has about one lead, for ``leadstream leads``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

import orjson

from infra.clock import to_datetime
from schemas.addresses import normal_email
from schemas.phones import parse_phone
from streams.intake.identity_policy import Policies
from streams.intake.provenance import said_by

if TYPE_CHECKING:
    import asyncpg

_MAX_ROWS = 1000  # of each kind

_LEAD = """
SELECT l.lead_id::text, l.tenant, l.version, l.created_at, l.updated_at, l.erased_at, l.merged_into::text,
    l.attributes::text AS attributes, l.provenance::text AS provenance, a.lead_id::text AS survivor_id
FROM leads l LEFT JOIN lead_aliases a ON a.alias_id = l.lead_id
WHERE l.lead_id = $1::uuid AND ($2 = '' OR l.tenant = $2)
"""
_EVENTS = """
SELECT DISTINCT ON (event_id) event_id, source, event_type FROM lead_history
WHERE event_id = ANY($2::text[]) AND lead_id IN (
    SELECT $1::uuid UNION ALL SELECT alias_id FROM lead_aliases WHERE lead_id = $1::uuid)
"""
_IDENTITIES = "SELECT kind, value FROM identities WHERE lead_id = $1::uuid ORDER BY kind, value LIMIT $2"
_MERGES = """
SELECT survivor_id::text, loser_id::text, merged_at, event_id, undone_at, undone_by FROM lead_merges
WHERE survivor_id = $1::uuid OR loser_id = $1::uuid ORDER BY merged_at LIMIT $2
"""
_APART = """
SELECT other_id::text AS lead_id, since, event_id FROM leads_apart WHERE lead_id = $1::uuid ORDER BY 1 LIMIT $2
"""
_REVIEWS = """
SELECT kind, value, holder_id::text, why, event_id, refused_at, closed_at FROM merge_reviews WHERE lead_id = $1::uuid
ORDER BY refused_at LIMIT $2
"""
_CRM = """
SELECT destination, wanted_version, synced_version, remote_id, attempts, last_error, detail, synced_at
FROM crm_sync WHERE lead_id = $1::uuid ORDER BY destination LIMIT $2
"""


class LeadNotFoundError(Exception):
    """No lead, or leads of several tenants, match; the message says what to try next."""


async def find_lead(postgres: asyncpg.Connection, text: str, tenant: str) -> str:
    """Return the id of the lead with this id or identifier; ``tenant``: "" means all.

    Raises:
        LeadNotFoundError: there is none, or several.

    """
    if lead_id := _uuid(text):
        found = await postgres.fetch("SELECT lead_id, tenant FROM leads WHERE lead_id = $1::uuid", UUID(lead_id))
    else:
        found = await postgres.fetch(
            "SELECT DISTINCT lead_id, tenant FROM identities WHERE value = ANY($1)",
            [text, normal_email(text), parse_phone(text).key],
        )
    found = [row for row in found if tenant in ("", row["tenant"])]
    tenants = sorted({row["tenant"] for row in found})
    if len(tenants) > 1:
        raise LeadNotFoundError(f"Several tenants have this identifier: add --tenant, one of {', '.join(tenants)}.")
    if len(found) > 1:
        ids = ", ".join(str(row["lead_id"]) for row in found)
        raise LeadNotFoundError(f"Several leads have this, as identifiers of different kinds: use an id of {ids}.")
    if not found:
        where = f" of the tenant {tenant}" if tenant else ""
        raise LeadNotFoundError(f"There is no lead{where} with this id or identifier.")
    return str(found[0]["lead_id"])


async def read_lead(postgres: asyncpg.Connection, lead_id: str, policies: Policies) -> dict[str, Any]:
    """Return what is stored about a lead: of a merged one, its last state and the lead that it is part of now."""
    row = await postgres.fetchrow(_LEAD, UUID(lead_id), "")
    head = {name: row[name] for name in ("lead_id", "tenant", "version", "merged_into", "survivor_id")}
    times = {name: _time(row[name]) for name in ("created_at", "updated_at", "erased_at")}
    policy = policies(row["tenant"])
    identities = [
        {"kind": kind, "value": value, "strength": "strong" if policy.is_strong(kind, value) else "weak"}
        for kind, value in await postgres.fetch(_IDENTITIES, UUID(lead_id), _MAX_ROWS)
    ]
    return {
        **head,
        **times,
        "values": await _values(postgres, lead_id, row),
        "identities": identities,
        "merges": await _rows(postgres, _MERGES, lead_id),
        "kept_apart_from": await _rows(postgres, _APART, lead_id),
        "reviews": await _rows(postgres, _REVIEWS, lead_id),
        "crm": await _rows(postgres, _CRM, lead_id),
    }


async def _values(postgres: asyncpg.Connection, lead_id: str, row: Any) -> list[dict[str, Any]]:
    said = said_by(orjson.loads(row["attributes"]), row["provenance"])
    events = await postgres.fetch(_EVENTS, UUID(lead_id), list({one.event_id for one in said}))
    known = {event["event_id"]: event for event in events}
    return [
        {
            "field": one.field,
            "value": one.value,
            "authority": one.authority,
            "occurred_at": _time(one.at),
            "event_id": one.event_id,
            "event_type": known[one.event_id]["event_type"] if one.event_id in known else "",
            "source": known[one.event_id]["source"] if one.event_id in known else "",
        }
        for one in said
    ]


async def _rows(postgres: asyncpg.Connection, statement: str, lead_id: str) -> list[dict[str, Any]]:
    return [
        {name: _time(value) if name.endswith("_at") or name == "since" else value for name, value in row.items()}
        for row in await postgres.fetch(statement, UUID(lead_id), _MAX_ROWS)
    ]


def _time(at: int | None) -> str | None:
    return None if at is None else to_datetime(at).isoformat()


def _uuid(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        return ""
