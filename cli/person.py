"""Finds the lead of a person, by id or identifier, for the commands that are about one person."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

import asyncpg

from infra.clock import to_datetime
from infra.postgres.pool import connection
from schemas.addresses import normal_email
from schemas.phones import parse_phone
from streams.intake.suppression_key import load_key

_BY_ID = """
WITH RECURSIVE up AS (
    SELECT $1::uuid AS lead_id UNION SELECT a.lead_id FROM lead_aliases a JOIN up ON a.alias_id = up.lead_id
)
SELECT l.lead_id, l.tenant, l.version, l.erased_at FROM leads l JOIN up USING (lead_id)
WHERE l.merged_into IS NULL AND ($2 = '' OR l.tenant = $2)
"""
_BY_IDENTIFIER = """
SELECT DISTINCT l.lead_id, l.tenant, l.version, l.erased_at FROM identities i JOIN leads l USING (lead_id)
WHERE i.value = ANY($1::text[]) AND ($2 = '' OR i.tenant = $2)
"""
_ALIASES = "SELECT alias_id FROM lead_aliases WHERE lead_id = $1"
_IDENTITIES = "SELECT kind, value FROM identities WHERE lead_id = $1 ORDER BY kind, value"
_TENANTS = "SELECT DISTINCT tenant FROM suppressions WHERE $1 = '' OR tenant = $1"
_SUPPRESSED = "SELECT tenant, lead_id, erased_at FROM suppressions WHERE hash = ANY($1::bytea[]) LIMIT 1"
_KINDS = ("email", "external_id", "phone", "anonymous_id", "crm:hubspot", "crm:salesforce")


class PersonError(Exception):
    """The id or identifier is of no lead, of several, or of an erased one; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Person:
    """A lead. ``aliases``: the leads that were merged into it. ``erased_at``: microseconds since 1970, or None."""

    lead_id: str
    tenant: str
    version: int
    erased_at: int | None
    aliases: list[str]
    identities: list[tuple[str, str]]

    @property
    def lead_ids(self) -> list[str]:
        """The ids under which something can be stored about the person."""
        return [self.lead_id, *self.aliases]


async def find_person(pool: asyncpg.Pool, text: str, tenant: str, key_setting: str) -> Person:
    """Return the lead with the id or identifier ``text``; ``tenant``: "" means all.

    Raises:
        PersonError: there is no such lead, there are several, or it was erased and ``text`` is one of its identifiers.
        DependencyUnavailable: Postgres is unavailable.

    """
    lead_id, spellings = _uuid(text), _spellings(text)
    async with connection(pool) as postgres:
        rows = await postgres.fetch(_BY_ID, lead_id, tenant) if lead_id else []
        rows = rows or await postgres.fetch(_BY_IDENTIFIER, spellings, tenant)
        if len(rows) == 1:
            row = rows[0]
            aliases = [str(alias[0]) for alias in await postgres.fetch(_ALIASES, row["lead_id"])]
            identities = [(each["kind"], each["value"]) for each in await postgres.fetch(_IDENTITIES, row["lead_id"])]
            return Person(str(row["lead_id"]), row["tenant"], row["version"], row["erased_at"], aliases, identities)
        suppressed_in = [] if rows else [each[0] for each in await postgres.fetch(_TENANTS, tenant)]
    if rows:
        tenants = sorted({row["tenant"] for row in rows})
        if len(tenants) == len(rows):
            raise PersonError(f"Several tenants have this identifier: choose one with --tenant ({', '.join(tenants)}).")
        ids = ", ".join(str(row["lead_id"]) for row in rows)
        raise PersonError(f"Several leads have this identifier: use the id of one of them ({ids}).")
    await _raise_if_suppressed(pool, suppressed_in, spellings, key_setting)
    raise PersonError(
        "No lead has this id or identifier. Events of the last seconds may not be processed yet: see `leadstream lag`."
    )


async def _raise_if_suppressed(
    pool: asyncpg.Pool, tenants: Iterable[str], spellings: Iterable[str], key_setting: str
) -> None:
    key = await load_key(pool, key_setting)
    hashes = [key.hash((tenant, kind, each)) for tenant in tenants for kind in _KINDS for each in spellings]
    if not hashes:
        return
    async with connection(pool) as postgres:
        row = await postgres.fetchrow(_SUPPRESSED, hashes)
    if row:
        at = to_datetime(row["erased_at"]).isoformat(timespec="seconds")
        raise PersonError(
            f"The person with this identifier was erased at {at} (tenant {row['tenant']}, lead {row['lead_id']}): only "
            f"a keyed hash of it is left. `leadstream erase {row['lead_id']}` shows where the person was removed."
        )


def _spellings(text: str) -> list[str]:
    """Return ``text`` and its normal forms as an address and as a phone number."""
    return [each for each in dict.fromkeys((text, normal_email(text), parse_phone(text).key)) if each]


def _uuid(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        return ""
