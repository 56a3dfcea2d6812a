"""The table ``messages_sent``: the requested messages and the result of each.

:class:`LeasedTable` claims, parks and releases the rows. This module detects repeated requests, writes the state
``sending``, and checks at the claim whether the message is still permitted.

No transaction is open while a provider is called. All methods raise DependencyUnavailable. Times are microseconds since
1970, UTC.
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

# Checked in the claim, because consent may have been withdrawn since the message was requested. NULL: the lead was
# deleted. streams.campaigns.triggers.Consent.allows decides before the request; delivery.py acts on this value.
_PERMISSION = """
(SELECT CASE
    WHEN lead.erased_at IS NOT NULL AND NOT EXISTS (
        -- An event after the erasure is a new request of the person.
        SELECT FROM lead_history h WHERE h.lead_id = work.lead_id AND h.event_id = work.event_id
            AND h.occurred_at > lead.erased_at
    ) THEN 'erased'
    WHEN lead.attributes -> 'consent' ->> work.purpose = 'withdrawn' THEN 'withdrawn'
    ELSE 'permitted'
 END
 FROM leads lead WHERE lead.lead_id = COALESCE(
    (SELECT alias.lead_id FROM lead_aliases alias WHERE alias.alias_id = work.lead_id), work.lead_id)
) AS permission
"""

_CLAIMED_BYTES = 16_384  # of a request that is read with its claim: many are claimed in advance

_COLUMNS = WorkColumns(
    table="messages_sent",
    key="message_id",
    key_type="text",
    scope="channel",
    unfinished="state IN ('waiting', 'sending')",
    returning=f'work.tenant, work.lead_id, work.event_id, work.campaign, work.topic, work.partition, work."offset", '
    f"work.requested_at, work.state, {_PERMISSION}, "
    f"CASE WHEN octet_length(work.request) <= {_CLAIMED_BYTES} THEN work.request END AS request",
    on_park="state = 'waiting'",
)

# Returns the requests that have an earlier one, with the event id of the earlier one: another event id means a second
# event of the lead, the same one a redelivery. Earlier requests are those with the same message_id and, with once_per =
# 'lead', those of the same campaign and channel for the same lead, or for a lead that was merged into it since.
_ADD = """
WITH requested AS MATERIALIZED (
    SELECT a.*, COALESCE(r.lead_id, a.lead_id) AS lead
    FROM unnest($1::text[], $2::text[], $3::uuid[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
                $9::text[], $10::int[], $11::bigint[], $12::timestamptz[], $13::bytea[]) WITH ORDINALITY
        AS a(message_id, tenant, lead_id, event_id, campaign, channel, purpose, once_per,
             topic, partition, "offset", requested_at, request, n)
    LEFT JOIN lead_aliases r ON r.alias_id = a.lead_id
), same AS (
    SELECT m.message_id, m.event_id FROM messages_sent m JOIN requested a USING (message_id)
), same_lead AS (
    SELECT a.message_id, m.event_id
    FROM requested a
    CROSS JOIN LATERAL (
        SELECT a.lead AS lead_id UNION ALL SELECT alias_id FROM lead_aliases WHERE lead_id = a.lead
    ) own
    JOIN messages_sent m ON m.lead_id = own.lead_id AND m.tenant = a.tenant AND m.campaign = a.campaign
        AND m.channel = a.channel
    WHERE a.once_per = 'lead'
    UNION ALL
    SELECT a.message_id, b.event_id
    FROM requested a JOIN requested b ON b.n < a.n AND b.once_per = 'lead' AND b.lead = a.lead AND b.tenant = a.tenant
        AND b.campaign = a.campaign AND b.channel = a.channel
    WHERE a.once_per = 'lead'
), earlier AS (
    SELECT * FROM same
    UNION ALL SELECT * FROM same_lead WHERE message_id NOT IN (SELECT message_id FROM same)
), inserted AS (
    INSERT INTO messages_sent (message_id, tenant, lead_id, event_id, campaign, channel, purpose, topic, partition,
                               "offset", requested_at, request, next_attempt_at, once_per)
    SELECT message_id, tenant, lead_id, event_id, campaign, channel, purpose, topic, partition,
           "offset", requested_at, request, $14, CASE WHEN once_per = 'event' THEN 'event' ELSE 'lead' END
    FROM requested WHERE message_id NOT IN (SELECT message_id FROM earlier) ORDER BY message_id
    ON CONFLICT (message_id) DO NOTHING
)
SELECT message_id, event_id FROM earlier
"""

_REQUEST = "SELECT request FROM messages_sent WHERE message_id = $1"

_SENDING = """
UPDATE messages_sent SET state = 'sending'
WHERE message_id = $1 AND claimed_until = $2 AND claimed_until > $3 AND state IN ('waiting', 'sending') RETURNING 1
"""

# Keeps the lease: if the response to this statement is lost, its repetition must find the row and change nothing.
_FINISH = """
UPDATE messages_sent SET
    state = $3, last_error = $4, provider_id = $5, request = NULL,
    attempts = attempts + (state IN ('waiting', 'sending'))::int,
    sent_at = CASE WHEN $3 = 'sent' THEN COALESCE(sent_at, $6::timestamptz) END
WHERE message_id = $1 AND claimed_until = $2 RETURNING 1
"""


@dataclass(frozen=True, slots=True)
class MessageRequest:
    """A requested message. ``request``: the consumed ``message_request`` record. Fields are in the order of _ADD."""

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
    """A claimed message. ``key``: its message_id. ``erased``: its lead was erased or deleted.

    ``unsure``: an earlier attempt to send it has no result, so the provider may have accepted it. ``withdrawn``: the
    consent for its purpose was withdrawn. ``request``: None if it is large: :meth:`MessagesTable.request` reads it.
    """

    campaign: str
    requested_at: int
    request: bytes | None
    unsure: bool
    erased: bool
    withdrawn: bool


@dataclass(frozen=True, slots=True)
class FinalState:
    """The final state of a message: ``sent``, ``failed`` or ``skipped``. ``provider_id``: as in :class:`Sent`."""

    state: str
    provider_id: str = ""


class MessagesTable(LeasedTable[MessageRow]):
    """The rows of one channel, such as email."""

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
            erased=record["permission"] in (None, "erased"),
            withdrawn=record["permission"] == "withdrawn",
        )

    def overdue(self, row: MessageRow) -> Released:  # noqa: ARG002
        """Release the row without a change of its state: a message in the state ``sending`` stays unsure."""
        return Released()

    async def add(self, requests: Sequence[MessageRequest]) -> dict[str, str]:
        """Insert ``requests``, whose message ids must differ, except those that have an earlier request.

        Returns:
            Message id -> event id of the earlier request.

        """
        columns: list[list[Any]] = [
            [getattr(each, field.name) for each in requests] for field in fields(MessageRequest)
        ]
        async with connection(self._pool) as postgres:
            known = await postgres.fetch(_ADD, *columns, self._clock())
        return {row["message_id"]: row["event_id"] for row in known}

    async def request(self, row: MessageRow) -> bytes | None:
        """Return the request of a claimed message, or None if the message was finished since."""
        async with connection(self._pool) as postgres:
            found: bytes | None = await postgres.fetchval(_REQUEST, row.key)
        return found

    async def mark_sending(self, lease: Lease[MessageRow], row: MessageRow) -> bool:
        """Write the state ``sending``, directly before the message is sent; return False if the lease has ended."""
        async with connection(self._pool) as postgres:
            found = await postgres.fetchval(_SENDING, row.key, lease.until, self._clock())
        return found is not None

    async def finish(self, lease: Lease[MessageRow], done: Sequence[tuple[MessageRow, Done]]) -> Collection[str]:
        """Write final states (``Done.value``) and delete the messages' content; return the ids whose lease was held."""
        written = set()
        async with connection(self._pool) as postgres:
            for row, each in done:
                final: FinalState = each.value
                reason = each.reason.value if each.reason else ""
                values = (final.state, reason, final.provider_id, self._clock())
                if await postgres.fetchval(_FINISH, row.key, lease.until, *values) is not None:
                    written.add(row.key)
        return written
