"""``messages_sent`` in Postgres: which messages are requested, and what became of each.

Claiming, parking and releasing are the engine's (:class:`LeasedTable`); here is what is the messages' own: requests
that were made before, the state ``sending``, and the standing of the lead when its message is claimed. Every method is
one statement; none is open while a provider is called. All methods raise DependencyUnavailable. Times are microseconds
since 1970 UTC.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from typing import Any

import asyncpg

from infra.clock import Clock, now_us
from infra.postgres.leased_rows import ClaimedRow, Done, Lease, Released, Subject
from infra.postgres.leased_table import LeasedTable, WorkColumns
from infra.postgres.pool import connection

# Consent is looked at in the claim, not when the message was requested: it may have waited, and the lead changed its
# mind. No standing: the lead is gone.
_STANDING = """
(SELECT CASE
    WHEN lead.erased_at IS NOT NULL AND NOT EXISTS (
        -- requested by what came after the erasure: that is the lead's own new wish
        SELECT FROM lead_history h WHERE h.lead_id = work.lead_id AND h.event_id = work.event_id
            AND h.occurred_at > lead.erased_at
    ) THEN 'erased'
    WHEN lead.attributes -> 'consent' ->> work.purpose = 'withdrawn' THEN 'withdrawn'
    ELSE 'free'
 END
 FROM leads lead WHERE lead.lead_id = COALESCE(
    (SELECT alias.lead_id FROM lead_aliases alias WHERE alias.alias_id = work.lead_id), work.lead_id)
) AS standing
"""

_COLUMNS = WorkColumns(
    table="messages_sent",
    key="message_id",
    key_type="text",
    scope="channel",
    unfinished="state IN ('waiting', 'sending')",
    returning=f'work.tenant, work.lead_id, work.event_id, work.campaign, work.topic, work.partition, work."offset", '
    f"work.requested_at, work.request, work.state, {_STANDING}",
    on_park="state = 'waiting'",
)

# Returns what was requested already, so that a second event of a lead can be told from a redelivery: messages of these
# ids, and where one a lead is enough, another message of the campaign to what is the same lead by now.
_ADD = """
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

_SENDING = """
UPDATE messages_sent SET state = 'sending'
WHERE message_id = $1 AND claimed_until = $2 AND claimed_until > $3 AND state IN ('waiting', 'sending') RETURNING 1
"""

# The lease stays as it is, so that a repetition, when the answer was lost, finds the row again and changes nothing.
_FINISH = """
UPDATE messages_sent SET
    state = $3, last_error = $4, provider_id = $5, request = NULL,
    attempts = attempts + (state IN ('waiting', 'sending'))::int,
    sent_at = CASE WHEN $3 = 'sent' THEN COALESCE(sent_at, $6::timestamptz) END
WHERE message_id = $1 AND claimed_until = $2 RETURNING 1
"""


@dataclass(frozen=True, slots=True)
class MessageRequest:
    """A requested message; ``request`` is the whole ``message_request`` as it came. Fields are in the order of _ADD."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageRow(ClaimedRow):
    """A claimed message; ``key`` is its message_id.

    ``unsure``: an earlier worker began to hand it over, and it is not known how that ended.
    """

    campaign: str
    requested_at: int
    request: bytes
    unsure: bool
    erased: bool
    withdrawn: bool


@dataclass(frozen=True, slots=True)
class Ended:
    """The message's last state: ``sent``, ``failed`` or ``skipped``."""

    state: str
    provider_id: str = ""


class MessagesTable(LeasedTable[MessageRow]):
    """The rows of one channel."""

    finish_is_exact = True

    def __init__(self, pool: asyncpg.Pool, channel: str, *, lease_s: float, clock: Clock = now_us) -> None:
        super().__init__(pool, _COLUMNS, channel, lease_s=lease_s, clock=clock)

    def read(self, record: Any) -> MessageRow:
        """See :class:`LeasedTable`."""
        return MessageRow(
            key=record["key"],
            attempts=record["attempts"],
            last_error=record["last_error"],
            subject=Subject(
                record["tenant"],
                event_id=record["event_id"],
                lead_id=str(record["lead_id"]),
                source=(record["topic"], record["partition"], record["offset"]),
            ),
            campaign=record["campaign"],
            requested_at=record["requested_at"],
            request=record["request"],
            unsure=record["state"] == "sending",
            erased=record["standing"] in (None, "erased"),
            withdrawn=record["standing"] == "withdrawn",
        )

    def overdue(self, row: MessageRow) -> Released:  # noqa: ARG002
        """Keep the state: a message that was being handed over is unsure."""
        return Released()

    async def add(self, requests: Sequence[MessageRequest]) -> dict[str, str]:
        """Insert ``requests`` (of different message ids); return message id to event id of those requested before."""
        columns: list[list[Any]] = [
            [getattr(each, field.name) for each in requests] for field in fields(MessageRequest)
        ]
        async with connection(self._pool) as postgres:
            known = await postgres.fetch(_ADD, *columns, self._clock())
        return {row["message_id"]: row["event_id"] for row in known}

    async def sending(self, lease: Lease[MessageRow], row: MessageRow) -> bool:
        """Note that the message is about to be handed over; False when the lease has ended."""
        async with connection(self._pool) as postgres:
            found = await postgres.fetchval(_SENDING, row.key, lease.until, self._clock())
        return found is not None

    async def finish(self, lease: Lease[MessageRow], done: Sequence[tuple[MessageRow, Done]]) -> Collection[str]:
        """End messages (``Done.value`` is :class:`Ended`) and delete their content; return the ids that were ours."""
        ours = set()
        async with connection(self._pool) as postgres:
            for row, each in done:
                ended: Ended = each.value
                reason = each.reason.value if each.reason else ""
                values = (ended.state, reason, ended.provider_id, self._clock())
                if await postgres.fetchval(_FINISH, row.key, lease.until, *values) is not None:
                    ours.add(row.key)
        return ours
