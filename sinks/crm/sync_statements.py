"""The SQL statements on ``crm_sync``; :mod:`sinks.crm.sync_table` runs them."""

# Each join on lead_id is repeated as ``lead_id = ANY(...)``, so that Postgres uses the index; see LeasedTable.

WANT = """
INSERT INTO crm_sync AS s (destination, lead_id, tenant, wanted_version, last_wanted_at, next_attempt_at)
SELECT $1, d.lead_id, d.tenant, d.version, d.decided_at, $2
FROM unnest($3::uuid[], $4::text[], $5::bigint[], $6::timestamptz[]) AS d(lead_id, tenant, version, decided_at)
ORDER BY d.lead_id
ON CONFLICT (destination, lead_id) DO UPDATE SET
    wanted_version = EXCLUDED.wanted_version,
    last_wanted_at = EXCLUDED.last_wanted_at,
    -- A rejected lead is due at once and starts with 0 attempts; a lead in backoff stays in backoff. One without a
    -- failed attempt waits for its merge in the CRM: the merge was undone.
    attempts = CASE WHEN s.next_attempt_at = 'infinity' THEN 0 ELSE s.attempts END,
    next_attempt_at = CASE WHEN s.next_attempt_at = 'infinity' OR s.synced_version >= s.wanted_version OR s.attempts = 0
                           THEN EXCLUDED.next_attempt_at ELSE s.next_attempt_at END
WHERE s.wanted_version < EXCLUDED.wanted_version
"""

# Returns the leads that were merged into one of $4, have a row and are not parked. Not FOR UPDATE SKIP LOCKED: a row
# that another worker has leased must be returned too (its other columns are NULL), because its survivor must wait.
CLAIM_LOSERS = """
WITH losers AS MATERIALIZED (
    SELECT s.lead_id, a.lead_id AS survivor_id FROM lead_aliases a
    JOIN crm_sync s ON s.destination = $1 AND s.lead_id = a.alias_id
    WHERE a.lead_id = ANY($4::uuid[]) AND s.next_attempt_at <= $2
    ORDER BY s.lead_id FOR UPDATE OF s
), claimed AS (
    UPDATE crm_sync s SET claimed_until = $3
    WHERE s.destination = $1 AND s.lead_id = ANY(ARRAY(SELECT lead_id FROM losers)) AND s.claimed_until <= $2
    RETURNING s.lead_id, s.tenant, s.wanted_version, s.attempts, s.last_error, s.remote_id
)
SELECT l.survivor_id, l.lead_id::text AS key, c.tenant, c.wanted_version, c.attempts, c.last_error, c.remote_id,
       NULL AS sent, false AS known
FROM losers l LEFT JOIN claimed c ON c.lead_id = l.lead_id
WHERE l.lead_id <> ALL($5::uuid[])
"""

# Attributes only of leads that are not merged, and only of $3 bytes (of the last one, what exceeds them): those of the
# rows that are due longest.
LEADS = """
WITH found AS MATERIALIZED (
    SELECT l.lead_id, l.tenant, l.version, l.merged_into, l.erased_at IS NOT NULL AS erased, s.next_attempt_at,
           CASE WHEN l.merged_into IS NULL THEN octet_length(l.attributes::text) ELSE 0 END AS bytes
    FROM leads l
    LEFT JOIN crm_sync s ON s.destination = $1 AND s.lead_id = ANY($2::uuid[]) AND s.lead_id = l.lead_id
    WHERE l.lead_id = ANY($2::uuid[])
), summed AS (
    SELECT *, sum(bytes) OVER (ORDER BY next_attempt_at, lead_id) - bytes AS bytes_before FROM found
)
SELECT f.lead_id, f.tenant, f.version, f.merged_into, f.erased,
       CASE WHEN f.merged_into IS NULL AND f.bytes_before < $3 THEN
           (SELECT l.attributes::text FROM leads l WHERE l.lead_id = f.lead_id)
       END AS attributes,
       CASE WHEN f.merged_into IS NOT NULL THEN
           (SELECT s.remote_id FROM crm_sync s WHERE s.destination = $1 AND s.lead_id = f.merged_into)
       END AS survivor_remote_id,
       CASE WHEN f.merged_into IS NOT NULL THEN
           (SELECT m.merged_at FROM lead_merges m
            WHERE m.survivor_id = f.merged_into AND m.loser_id = f.lead_id AND m.undone_at IS NULL
                AND (m.survivor->'attributes' ? 'email' OR NOT m.loser->'attributes' ? 'email')
            ORDER BY m.merged_at DESC LIMIT 1)
       END AS merged_at
FROM summed f
"""

SYNCED = """
UPDATE crm_sync s SET
    synced_version = GREATEST(s.synced_version, d.version), wanted_version = GREATEST(s.wanted_version, d.version),
    remote_id = CASE WHEN d.remote_id = '' THEN s.remote_id ELSE d.remote_id END,
    sent = CASE WHEN d.version >= s.synced_version THEN d.sent::jsonb ELSE s.sent END,
    attempts = 0, last_error = '', detail = '', conflict_lead = NULL, synced_at = $2,
    next_attempt_at = CASE WHEN s.next_attempt_at > $2 THEN $2 ELSE s.next_attempt_at END,
    claimed_until = CASE WHEN s.claimed_until = $3 THEN '-infinity' ELSE s.claimed_until END
FROM unnest($4::uuid[], $5::bigint[], $6::text[], $7::text[]) AS d(lead_id, version, remote_id, sent)
WHERE s.destination = $1 AND s.lead_id = ANY($4::uuid[]) AND s.lead_id = d.lead_id
"""

# The CRM has nothing about the lead any more: neither its record's id nor what was sent is kept.
ERASED = """
UPDATE crm_sync s SET
    synced_version = GREATEST(s.synced_version, d.version), wanted_version = GREATEST(s.wanted_version, d.version),
    remote_id = '', sent = NULL, attempts = 0, last_error = '', detail = '', conflict_lead = NULL, synced_at = $2,
    next_attempt_at = CASE WHEN s.next_attempt_at > $2 THEN $2 ELSE s.next_attempt_at END,
    claimed_until = CASE WHEN s.claimed_until = $3 THEN '-infinity' ELSE s.claimed_until END
FROM unnest($4::uuid[], $5::text[], $6::bigint[], $7::text[]) AS d(lead_id, tenant, version, detail)
WHERE s.destination = $1 AND s.lead_id = ANY($4::uuid[]) AND s.lead_id = d.lead_id
"""

# The proof for `leadstream erase`. A row is there already if operations/erasure_work.py came first.
RECORD_ERASED = """
INSERT INTO erasures AS e (store, lead_id, tenant, event_id, version, erased_at, decided_at, done_at, detail,
                           next_attempt_at)
SELECT $1, d.lead_id, d.tenant, COALESCE(own.event_id, ''), d.version, COALESCE(l.erased_at, $2),
       COALESCE(own.decided_at, $2), $2, d.detail, $2
FROM unnest($3::uuid[], $4::text[], $5::bigint[], $6::text[]) AS d(lead_id, tenant, version, detail)
LEFT JOIN leads l ON l.lead_id = d.lead_id LEFT JOIN erasures own ON own.store = 'leads' AND own.lead_id = d.lead_id
ORDER BY d.lead_id
ON CONFLICT (store, lead_id) DO UPDATE SET done_at = excluded.done_at, detail = excluded.detail
"""

# d.version: the version that was sent. wanted_version becomes at least d.version, so that a request for d.version that
# is still in Kafka is not new and does not end the parking. A rejected row ('infinity') is due at once if a newer
# version was wanted during the call.
PARK = """
UPDATE crm_sync s SET
    attempts = s.attempts + d.attempts, last_error = d.reason, detail = d.detail, conflict_lead = d.conflict_lead,
    claimed_until = '-infinity',
    wanted_version = GREATEST(s.wanted_version, d.version),
    next_attempt_at = CASE WHEN d.due_at = 'infinity' AND s.wanted_version > d.version THEN $2 ELSE d.due_at END
FROM unnest($4::uuid[], $5::bigint[], $6::text[], $7::timestamptz[], $8::int[], $9::text[], $10::uuid[])
    AS d(lead_id, version, reason, due_at, attempts, detail, conflict_lead)
WHERE s.destination = $1 AND s.lead_id = ANY($4::uuid[]) AND s.lead_id = d.lead_id AND s.claimed_until = $3
RETURNING s.lead_id::text
"""

DELETE = """
DELETE FROM crm_sync s USING unnest($3::uuid[], $4::bigint[]) AS d(lead_id, wanted)
WHERE s.destination = $1 AND s.lead_id = ANY($3::uuid[]) AND s.lead_id = d.lead_id
    AND s.claimed_until = $2 AND s.wanted_version <= d.wanted
"""

# Rows that DELETE has kept: a newer version was wanted during the retirement, because the merge was undone. The CRM
# no longer has a record of these leads.
RESET = """
UPDATE crm_sync SET claimed_until = '-infinity', synced_version = 0, remote_id = '', attempts = 0, last_error = '',
    detail = '', conflict_lead = NULL, sent = NULL
WHERE destination = $1 AND claimed_until = $2 AND lead_id = ANY($3::uuid[])
"""

LOCK = "SELECT FROM crm_sync WHERE destination = $1 AND lead_id = ANY($2::uuid[]) ORDER BY lead_id FOR UPDATE"

SET_REMOTE_ID = """
UPDATE crm_sync s SET remote_id = d.remote_id, sent = CASE WHEN s.remote_id = d.remote_id THEN s.sent END
FROM unnest($2::uuid[], $3::text[]) AS d(lead_id, remote_id)
WHERE s.destination = $1 AND s.lead_id = ANY($2::uuid[]) AND s.lead_id = d.lead_id
"""

# Leads that were parked because a record of one of $3 was in the way: it may not be any more. SKIP LOCKED: without a
# lock of the row, which comes in no order, nothing is changed.
RELEASE_CONFLICTS = """
UPDATE crm_sync SET next_attempt_at = $2, conflict_lead = NULL
WHERE destination = $1 AND lead_id = ANY(ARRAY(
    SELECT lead_id FROM crm_sync WHERE destination = $1 AND conflict_lead = ANY($3::uuid[])
        AND next_attempt_at = 'infinity' AND lead_id <> ALL($3::uuid[]) FOR UPDATE SKIP LOCKED
))
"""

# unsettled: the lead's record in the CRM is going to change, because it has work to do or was merged or deleted.
OWNERS = """
SELECT d.lead_id, COALESCE(l.tenant, s.tenant) AS tenant,
       s.lead_id IS NOT NULL AND s.next_attempt_at < 'infinity'
           AND (l.lead_id IS NULL OR l.merged_into IS NOT NULL OR s.wanted_version > s.synced_version) AS unsettled
FROM unnest($2::uuid[]) AS d(lead_id)
LEFT JOIN leads l ON l.lead_id = d.lead_id AND l.lead_id = ANY($2::uuid[])
LEFT JOIN crm_sync s ON s.destination = $1 AND s.lead_id = d.lead_id AND s.lead_id = ANY($2::uuid[])
WHERE COALESCE(l.tenant, s.tenant) IS NOT NULL
"""

# Rows of tenants that have an account of their own by now: their work belongs to the scope $4.
FORWARD = """
WITH gone AS (
    DELETE FROM crm_sync WHERE destination = $1 AND claimed_until = $2 AND lead_id = ANY($3::uuid[])
    RETURNING tenant, lead_id, wanted_version, last_wanted_at
)
INSERT INTO crm_sync AS s (destination, tenant, lead_id, wanted_version, last_wanted_at, next_attempt_at)
SELECT $4, tenant, lead_id, wanted_version, last_wanted_at, $5 FROM gone ORDER BY lead_id
ON CONFLICT (destination, lead_id) DO UPDATE SET wanted_version = GREATEST(s.wanted_version, EXCLUDED.wanted_version)
"""

# A tenant's new account gets all of its leads; what another account of this CRM ($3) should have had is dropped.
OPEN = "INSERT INTO crm_accounts (destination, tenant) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING 1"
LEAVE = "DELETE FROM crm_sync WHERE destination = $2 AND tenant = $1"
FILL = """
INSERT INTO crm_sync AS s (destination, tenant, lead_id, wanted_version, last_wanted_at, next_attempt_at)
SELECT $1, tenant, lead_id, version, updated_at, $3 FROM leads
WHERE tenant = $2 AND merged_into IS NULL AND erased_at IS NULL ORDER BY lead_id
ON CONFLICT (destination, lead_id) DO UPDATE SET wanted_version = GREATEST(s.wanted_version, EXCLUDED.wanted_version)
"""
CLOSE = "DELETE FROM crm_accounts WHERE starts_with(destination, $1) AND destination <> ALL($2::text[])"
