"""Looks up what is stored about leads that may get identities."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import asyncpg

from streams.intake.identity import Holder
from streams.intake.identity_policy import Policies
from streams.intake.split_store import leads_apart

_IDENTITIES = 2000  # of one lead: more than the caps, but for leads that were made before these


async def stored_holders(
    connection: asyncpg.Connection, lead_ids: Collection[str], policies: Policies
) -> dict[str, Holder]:
    """Return the holders of stored leads. They are not locked yet."""
    found: dict[str, Holder] = {}
    for lead_id, tenant, version, kinds, emails in await connection.fetch(
        """
        SELECT l.lead_id, l.tenant, l.version, i.kinds, i.emails
        FROM leads l CROSS JOIN LATERAL (
            SELECT array_agg(kind) AS kinds, array_agg(value) FILTER (WHERE kind = 'email') AS emails
            FROM (SELECT kind, value FROM identities WHERE lead_id = l.lead_id LIMIT $2) AS one
        ) AS i WHERE l.lead_id = ANY($1::uuid[])
        """,
        list(lead_ids),
        _IDENTITIES,
    ):
        policy = policies(tenant)
        counts = Counter(kinds or ())
        strong = any(policy.is_strong(kind, "") for kind in counts if kind != "email")
        strong = strong or any(policy.is_strong("email", email) for email in emails or ())
        found[str(lead_id)] = Holder(version, counts, strong)
    for lead_id, others in (await leads_apart(connection, found)).items():
        found[lead_id] = found[lead_id]._replace(apart=others)
    return found
