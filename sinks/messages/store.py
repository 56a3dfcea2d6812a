"""``messages_sent`` in Postgres: which messages are asked for, who has which in hand, and what became of each.

Every method is one statement; none is open while a provider is called. A claim is a lease until ``next_attempt_at``,
and ``claimed_at`` is its token: a worker whose lease ran out changes nothing about a message that another has claimed
since. All methods raise DependencyAway when Postgres is away. Times are microseconds since 1970 UTC.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg

from infra.outcomes import Reason
from infra.postgres.pool import connection

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# Returns what was asked for already, so that a second event of a lead can be told from the same one again: messages of
# these ids, and where one a lead is enough, another message of the campaign to what is the same lead by now.
_ASK = """
WITH asked AS MATERIALIZED (
    SELECT a.*, COALESCE(r.lead_id, a.lead_id) AS lead
    FROM unnest($1::text[], $2::text[], $3::uuid[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
                $9::text[], $10::int[], $11::bigint[], $12::timestamptz[], $13::bytea[]) WITH ORDINALITY
        AS a(message_id, tenant, lead_id, event_id, campaign, channel, purpose, once_per,
             topic, partition, "offset", requested_at, request, n)
    LEFT JOIN lead_aliases r ON r.alias_id = a.lead_id
), same AS (
    SELECT m.message_id, m.event_id FROM messages_sent m JOIN asked a USING (message_id)
), others AS (
    SELECT a.message_id, m.event_id
    FROM asked a
    CROSS JOIN LATERAL (
        SELECT a.lead AS lead_id UNION ALL SELECT alias_id FROM lead_aliases WHERE lead_id = a.lead
    ) own
    JOIN messages_sent m ON m.lead_id = own.lead_id AND m.tenant = a.tenant AND m.campaign = a.campaign
        AND m.channel = a.channel
    WHERE a.once_per = 'lead'
    UNION ALL
    SELECT a.message_id, b.event_id
    FROM asked a JOIN asked b ON b.n < a.n AND b.once_per = 'lead' AND b.lead = a.lead AND b.tenant = a.tenant
        AND b.campaign = a.campaign AND b.channel = a.channel
    WHERE a.once_per = 'lead'
), before AS (
    SELECT * FROM same
    UNION ALL SELECT * FROM others WHERE message_id NOT IN (SELECT message_id FROM same)
), fresh AS (
    INSERT INTO messages_sent (message_id, tenant, lead_id, event_id, campaign, channel, purpose, topic, partition,
                               "offset", requested_at, request, next_attempt_at)
    SELECT message_id, tenant, lead_id, event_id, campaign, channel, purpose, topic, partition,
           "offset", requested_at, request, $14
    FROM asked WHERE message_id NOT IN (SELECT message_id FROM before) ORDER BY message_id
    ON CONFLICT (message_id) DO NOTHING
)
SELECT message_id, event_id FROM before
"""

# Consent is looked at now, not when the message was asked for: it may have waited, and the lead changed its mind.
_CLAIM = """
WITH due AS MATERIALIZED (
    SELECT message_id, state AS before, lead_id, event_id, purpose FROM messages_sent
    WHERE channel = $1 AND state IN ('waiting', 'claimed', 'sending') AND next_attempt_at <= $2
    ORDER BY next_attempt_at LIMIT $4 FOR UPDATE SKIP LOCKED
), known AS MATERIALIZED (
    SELECT d.*, l.lead_id IS NULL OR l.provenance -> '_erased' IS NOT NULL AND NOT EXISTS (
            -- asked for by what came after the erasure: that is the lead's own new wish
            SELECT FROM lead_history h WHERE h.lead_id = d.lead_id AND h.event_id = d.event_id
                AND extract(epoch FROM h.occurred_at) * 1000000 > (l.provenance -> '_erased' ->> 1)::numeric
        ) AS erased,
        l.attributes -> 'consent' ->> d.purpose = 'withdrawn' AS withdrawn
    FROM due d LEFT JOIN lead_aliases a ON a.alias_id = d.lead_id
    LEFT JOIN leads l ON l.lead_id = COALESCE(a.lead_id, d.lead_id)
)
UPDATE messages_sent m SET claimed_at = $2, next_attempt_at = $3,
    state = CASE m.state WHEN 'sending' THEN 'sending' ELSE 'claimed' END -- unsure until it ends, crash after crash
FROM known k
WHERE m.message_id = k.message_id
RETURNING m.message_id, m.tenant, m.lead_id, m.event_id, m.campaign, m.topic, m.partition, m."offset", m.requested_at,
          m.request, m.attempts, m.last_error, k.before, k.erased, k.withdrawn
"""

_SENDING = """
UPDATE messages_sent SET state = 'sending', next_attempt_at = $3
WHERE message_id = $1 AND claimed_at = $2 AND state IN ('claimed', 'sending') RETURNING 1
"""

_FINISHED = """
UPDATE messages_sent SET state = $3, attempts = attempts + 1, last_error = $4, provider_id = $5, request = NULL,
    sent_at = CASE WHEN $3 = 'sent' THEN $6::timestamptz END
WHERE message_id = $1 AND claimed_at = $2 AND state IN ('claimed', 'sending') RETURNING 1
"""

_PARKED = """
UPDATE messages_sent SET state = 'waiting', attempts = attempts + 1, last_error = $3, next_attempt_at = $4
WHERE message_id = $1 AND claimed_at = $2 AND state IN ('claimed', 'sending') RETURNING 1
"""

_GIVEN_BACK = """
UPDATE messages_sent SET state = CASE state WHEN 'claimed' THEN 'waiting' ELSE state END, next_attempt_at = $3
WHERE message_id = $1 AND claimed_at = $2 AND state IN ('claimed', 'sending') RETURNING 1
"""


@dataclass(frozen=True, slots=True)
class Ask:
    """A message asked for; ``request`` is the whole ``message_request`` as it came. Fields are in the order of _ASK."""

    message_id: str
    tenant: str
    lead_id: str
    event_id: str
    campaign: str
    channel: str
    purpose: str
    once_per: str  # "lead" or "event"
    topic: str
    partition: int
    offset: int
    requested_at: int
    request: bytes


_REQUESTED_AT = [field.name for field in fields(Ask)].index("requested_at")


@dataclass(frozen=True, slots=True)
class Claim:
    """A message in hand. ``unsure``: an earlier worker began to hand it over and never said how that ended."""

    message_id: str
    tenant: str
    lead_id: str
    event_id: str
    campaign: str
    topic: str
    partition: int
    offset: int
    requested_at: int
    request: bytes
    attempts: int
    last_error: str
    unsure: bool
    erased: bool
    withdrawn: bool
    token: datetime


class Store:
    """The rows of one channel. ``clock``: microseconds since 1970."""

    def __init__(self, pool: asyncpg.Pool, channel: str, *, lease_s: float, clock: Callable[[], int]) -> None:
        self._pool = pool
        self._channel = channel
        self._lease = timedelta(seconds=lease_s)
        self._clock = clock

    async def ask(self, asks: Sequence[Ask]) -> dict[str, str]:
        """Note ``asks`` (of different message ids); return message id to event id of those asked for before."""
        columns: list[list[Any]] = [[getattr(ask, field.name) for ask in asks] for field in fields(Ask)]
        columns[_REQUESTED_AT] = [_time(ask.requested_at) for ask in asks]
        async with connection(self._pool) as postgres:
            known = await postgres.fetch(_ASK, *columns, self._now())
        return {row["message_id"]: row["event_id"] for row in known}

    async def claim(self, limit: int) -> list[Claim]:
        """Claim up to ``limit`` messages that are due, longest waiting first; never one that is in hand."""
        now = self._now()
        async with connection(self._pool) as postgres:
            rows = await postgres.fetch(_CLAIM, self._channel, now, now + self._lease, limit)
        return [_claim(row, now) for row in rows]

    async def sending(self, claim: Claim) -> bool:
        """Note that the message is about to be handed over; False when it is not ours any more."""
        return await self._one(_SENDING, claim, self._now() + self._lease)

    async def finished(self, claim: Claim, state: str, reason: Reason | None = None, provider_id: str = "") -> bool:
        """End the message as ``sent``, ``failed`` or ``skipped`` and forget what it said; False when not ours."""
        return await self._one(_FINISHED, claim, state, reason.value if reason else "", provider_id, self._now())

    async def parked(self, claim: Claim, reason: Reason, next_at: int) -> bool:
        """Give the message back until ``next_at``; False when it is not ours any more."""
        return await self._one(_PARKED, claim, reason.value, _time(next_at))

    async def given_back(self, claim: Claim, next_at: int) -> bool:
        """Let go until ``next_at`` of a message that nothing was done about; False when it is not ours any more."""
        return await self._one(_GIVEN_BACK, claim, _time(next_at))

    async def _one(self, statement: str, claim: Claim, *arguments: Any) -> bool:
        async with connection(self._pool) as postgres:
            found = await postgres.fetchval(statement, claim.message_id, claim.token, *arguments)
        return found is not None

    def _now(self) -> datetime:
        return _time(self._clock())


def _time(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)


def _claim(row: Any, token: datetime) -> Claim:
    return Claim(
        message_id=row["message_id"],
        tenant=row["tenant"],
        lead_id=str(row["lead_id"]),
        event_id=row["event_id"],
        campaign=row["campaign"],
        topic=row["topic"],
        partition=row["partition"],
        offset=row["offset"],
        requested_at=(row["requested_at"] - _EPOCH) // timedelta(microseconds=1),
        request=row["request"],
        attempts=row["attempts"],
        last_error=row["last_error"],
        unsure=row["before"] == "sending",
        erased=row["erased"],
        withdrawn=bool(row["withdrawn"]),
        token=token,
    )
