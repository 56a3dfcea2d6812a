"""Removes what was said by an erased person from the tables of intake, in the transaction of the erasure.

Receipts stay: they hold no values, and duplicates must still be recognised. In lead_history the versions stay, with
their event ids, types, sources and times. The other stores follow: a row of ``erasures`` for each is work for its
follower.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import asyncpg

from streams.intake.decision import Erasure
from streams.intake.erasure import said_after
from streams.intake.event import Identity
from streams.intake.identity_policy import Policies
from streams.intake.suppress import Suppression
from streams.intake.suppression_key import SuppressionKey

FOLLOWED = ("work", "clickhouse")  # the stores that others remove the lead from; CRM sync adds its own
_OWN = "leads"

_ALIASES = "SELECT alias_id FROM lead_aliases WHERE lead_id = $1"
_TAKE_IDENTITIES = """
DELETE FROM identities WHERE lead_id = $1 AND NOT ((kind, value) IN (SELECT * FROM unnest($2::text[], $3::text[])))
RETURNING kind, value
"""
_SUPPRESS = """
INSERT INTO suppressions AS s (tenant, hash, kind, lead_id, event_id, erased_at)
SELECT $1::text, hash, kind, $4::uuid, $5::text, $6::timestamptz
FROM unnest($2::bytea[], $3::text[]) AS w (hash, kind) ORDER BY hash
ON CONFLICT (tenant, hash) DO UPDATE SET kind = excluded.kind, lead_id = excluded.lead_id,
    event_id = excluded.event_id, erased_at = GREATEST(s.erased_at, excluded.erased_at), lifted_at = NULL
"""
# Of a lead that was erased before: what its identities said until now is refused, too.
_SUPPRESS_LONGER = """
UPDATE suppressions SET erased_at = $2, event_id = $3
WHERE lead_id = ANY($1::uuid[]) AND erased_at < $2 AND lifted_at IS NULL
"""
_FORGET_UNTIL = (
    # At most 10,000 versions, so that no lead holds intake up; operations/erasure_work.py forgets further ones.
    """
    UPDATE lead_history h SET changes = '{}', context = NULL
    FROM (SELECT lead_id, version, month FROM lead_history WHERE lead_id = ANY($1::uuid[]) AND occurred_at <= $2
          AND (changes <> '{}' OR context IS NOT NULL) LIMIT 10000) AS w
    WHERE h.lead_id = w.lead_id AND h.version = w.version AND h.month = w.month
    """,
    """
    UPDATE leads SET attributes = '{}', provenance = '{}', email = NULL, status = NULL, owner = NULL, region = NULL,
        score = NULL, erased_at = GREATEST(erased_at, $2::timestamptz)
    WHERE lead_id = ANY($1::uuid[]) AND merged_into IS NOT NULL
    """,
)
_FORGET_MERGES = """
UPDATE lead_merges SET survivor = '{}', loser = '{}', identities = '[]'
WHERE survivor_id = ANY($1::uuid[]) OR loser_id = ANY($1::uuid[])
"""
_REVIEWS = """
SELECT lead_id, kind, value FROM merge_reviews
WHERE (lead_id = ANY($1::uuid[]) OR holder_id = ANY($1::uuid[])) AND value <> '' AND value NOT LIKE 'erased:%'
"""
_CLOSE_REVIEW = """
UPDATE merge_reviews SET value = $4, closed_at = COALESCE(closed_at, $5) WHERE lead_id = $1 AND kind = $2 AND value = $3
"""
_RECORD = """
INSERT INTO erasures AS e (store, lead_id, tenant, event_id, version, erased_at, decided_at, done_at, next_attempt_at)
SELECT store, $2::uuid, $3::text, $4::text, $5::bigint, $6::timestamptz, $7::timestamptz,
       CASE WHEN store = $8::text THEN $7::timestamptz END, $7::timestamptz FROM unnest($1::text[]) AS store
ON CONFLICT (store, lead_id) DO UPDATE SET event_id = excluded.event_id, version = excluded.version,
    erased_at = GREATEST(e.erased_at, excluded.erased_at), decided_at = excluded.decided_at, done_at = excluded.done_at,
    detail = '', attempts = 0, last_error = '', next_attempt_at = excluded.next_attempt_at, claimed_until = '-infinity'
"""
_LIFT = "UPDATE suppressions SET lifted_at = $3 WHERE tenant = $1 AND hash = $2 AND lifted_at IS NULL"
_READ = """
SELECT w.n, s.lead_id, s.event_id, s.erased_at, s.lifted_at
FROM unnest($1::text[], $2::bytea[]) WITH ORDINALITY AS w (tenant, hash, n) JOIN suppressions s USING (tenant, hash)
"""


# Leads that were erased before suppressions existed: they still have their identities and their history.
_PAST = """
SELECT l.lead_id, l.tenant, l.version, l.erased_at, l.attributes::text AS attributes,
       l.provenance::jsonb -> '_erased' ->> 2 AS event_id
FROM leads l WHERE l.erased_at IS NOT NULL AND l.merged_into IS NULL
    AND NOT EXISTS (SELECT FROM erasures e WHERE e.store = 'leads' AND e.lead_id = l.lead_id)
    AND EXISTS (
        SELECT FROM lead_history h WHERE h.event_type = 'lead_erased' AND h.lead_id IN (
            SELECT l.lead_id UNION ALL SELECT alias_id FROM lead_aliases a WHERE a.lead_id = l.lead_id
        )
    )
ORDER BY l.lead_id LIMIT $1 FOR UPDATE OF l SKIP LOCKED
"""


async def erase_past(
    connection: asyncpg.Connection, key: SuppressionKey, policies: Policies, now: int, limit: int
) -> int:
    """Erase up to ``limit`` leads that were erased by an earlier version, as it is done today; return their number."""
    rows = await connection.fetch(_PAST, limit)
    past = [
        Erasure(
            str(row["lead_id"]),
            row["tenant"],
            row["event_id"] or "",
            row["version"],
            row["erased_at"],
            requested=True,
            kept=said_after(row["tenant"], row["attributes"], policies),
        )
        for row in rows
    ]
    await erase(connection, key, past, now)
    return len(past)


async def read_suppressions(
    connection: asyncpg.Connection, key: SuppressionKey, identities: Sequence[Identity]
) -> dict[Identity, Suppression]:
    """Return the suppressions of those of ``identities`` that are suppressed."""
    if not identities or not await connection.fetchval("SELECT EXISTS (SELECT FROM suppressions)"):
        return {}
    rows = await connection.fetch(_READ, [i[0] for i in identities], [key.hash(i) for i in identities])
    return {identities[n - 1]: Suppression(str(lead), event_id, at, lifted) for n, lead, event_id, at, lifted in rows}


async def lift(
    connection: asyncpg.Connection, key: SuppressionKey, lifted: Iterable[tuple[Identity, Suppression]]
) -> None:
    """Record the person's new consent for suppressed identities."""
    rows = sorted((identity[0], key.hash(identity), each.lifted_at) for identity, each in lifted)
    if rows:
        await connection.executemany(_LIFT, rows)


async def erase(connection: asyncpg.Connection, key: SuppressionKey, erasures: Sequence[Erasure], now: int) -> None:
    """Remove the values and identities of ``erasures``; their leads are locked and their rows are written."""
    for erasure in sorted(erasures):
        await _erase(connection, key, erasure, now)


async def _erase(connection: asyncpg.Connection, key: SuppressionKey, erasure: Erasure, now: int) -> None:
    aliases = [row[0] for row in await connection.fetch(_ALIASES, erasure.lead_id)]
    own = [erasure.lead_id, *aliases]
    if erasure.requested:
        kept = sorted(erasure.kept)
        taken = await connection.fetch(_TAKE_IDENTITIES, erasure.lead_id, [i[1] for i in kept], [i[2] for i in kept])
        hashes = [key.hash((erasure.tenant, kind, value)) for kind, value in taken]
        kinds = [row[0] for row in taken]
        values = (erasure.tenant, hashes, kinds, erasure.lead_id, erasure.event_id, erasure.erased_at)
        await connection.execute(_SUPPRESS, *values)
        await connection.execute(_SUPPRESS_LONGER, own, erasure.erased_at, erasure.event_id)
    for statement in _FORGET_UNTIL:
        await connection.execute(statement, own, erasure.erased_at)
    await connection.execute(_FORGET_MERGES, own)
    for lead_id, kind, value in await connection.fetch(_REVIEWS, own):
        hashed = f"erased:{key.hash((erasure.tenant, kind, value)).hex()}"
        await connection.execute(_CLOSE_REVIEW, lead_id, kind, value, hashed, now)
    stores = [_OWN, *FOLLOWED]
    about = (erasure.lead_id, erasure.tenant, erasure.event_id, erasure.version, erasure.erased_at, now, _OWN)
    await connection.execute(_RECORD, stores, *about)
