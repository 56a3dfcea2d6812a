"""The transaction in which a batch is decided, with its lookups and writes in Postgres.

Rows are locked in the order identities, leads (by lead_id), receipts, so that workers rarely deadlock. If Postgres
detects a deadlock, or another worker wrote between a lookup and a write, the transaction is rolled back and raises
:class:`Contended`: decide the events again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

import asyncpg

from infra.clock import DAY_US, to_datetime
from infra.kafka.sizes import utf8_bytes
from infra.postgres.pool import transaction
from schemas.registry import registry
from streams.intake.decision import Decision, LeadRow, PastChange
from streams.intake.dedupe import Receipt
from streams.intake.echo import PastValues
from streams.intake.erasure_writes import erase, erase_past, lift, read_suppressions
from streams.intake.event import Event, Identity
from streams.intake.history import outermost_touches, past_values
from streams.intake.holders import stored_holders
from streams.intake.identity import Holder, Refused
from streams.intake.identity_policy import Policies, default_policy
from streams.intake.merge import Touch
from streams.intake.part_size import Cut
from streams.intake.split_store import SplitTables
from streams.intake.suppress import Suppression
from streams.intake.suppression_key import SuppressionKey, load_key
from streams.intake.writes import columns_of, insert_bindings, insert_refused, write_decision

_CLOCK_ERROR = timedelta(seconds=300)  # maximum error of a worker's clock
_EVERY_TYPE = "*"  # an event type in signal_types that stands for all; written while a campaign file is invalid
_PREFETCH = 250  # rows
_PAST_ERASURES = 100  # of one transaction
_MONTH_LOCK = 7017840  # key of the advisory lock around the turn of a month
_CONTENTION = {
    asyncpg.UniqueViolationError: "unique_violation",
    asyncpg.DeadlockDetectedError: "deadlock",
    asyncpg.SerializationError: "serialization",
}


class Contended(Exception):  # noqa: N818 - control flow, not a defect
    """Another worker wrote the same rows at the same time. ``what``: the kind of conflict, a label of a metric."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class Transaction:
    """The lookups and writes of one transaction. They must be called in the order of the methods here."""

    def __init__(
        self,
        connection: asyncpg.Connection,
        window: timedelta,
        max_bytes: int,
        policies: Policies,
        key: SuppressionKey,
    ) -> None:
        self.connection = connection
        self._key = key
        self.splits = SplitTables(connection)
        self._policies = policies
        self._window = window
        self._max_bytes = max_bytes

    async def receipts(self, events: Iterable[Event], now: int) -> dict[str, Receipt]:
        """Return the receipts of the events among ``events`` that were accepted within the window, by event key.

        Only the month partitions of the window are read.

        Around the turn of a month, a lock lets only one worker decide at a time. The unique key of ``receipts``
        includes the month, so without the lock two workers could accept the same event in different months.
        """
        at = to_datetime(now)
        if (at - _CLOCK_ERROR).month != (at + _CLOCK_ERROR).month:
            await self.connection.execute("SELECT pg_advisory_xact_lock($1)", _MONTH_LOCK)
        rows = await self.connection.fetch(
            """
            SELECT key, topic, partition, "offset", lead_id, version, content FROM receipts
            WHERE key = ANY($1::uuid[]) AND month >= $2
            """,
            [event.key for event in events],
            (at - self._window).date().replace(day=1),
        )
        return {row[0].hex: Receipt(row[1], row[2], row[3], str(row[4]), row[5], row[6]) for row in rows}

    async def owners(self, events: Sequence[Event]) -> dict[Identity, str]:
        """Return the lead of each stored identity of ``events``; of a command, which is alone, those of its leads."""
        if events and events[0].type.lead_ids:
            return await self.splits.named_leads(events[0].identities)
        return await self.owned(list(dict.fromkeys(identity for event in events for identity in event.identities)))

    async def owned(self, wanted: Sequence[Identity]) -> dict[Identity, str]:
        """Return the lead of each of ``wanted`` that is stored."""
        if not wanted:
            return {}
        rows = await self.connection.fetch(
            """
            SELECT w.n, i.lead_id
            FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS w (tenant, kind, value, n)
            JOIN identities i USING (tenant, kind, value)
            """,
            *columns_of(wanted, 3),
        )
        return {wanted[n - 1]: str(lead_id) for n, lead_id in rows}

    async def holders(self, lead_ids: Collection[str]) -> dict[str, Holder]:
        """Return what is stored about leads that may get identities. They are not locked yet."""
        if not lead_ids:
            return {}
        return await stored_holders(self.connection, lead_ids, self._policies)

    async def bind(self, bindings: Mapping[Identity, str]) -> None:
        """Insert new identities. Waits if another worker has inserted one of them and has not committed yet."""
        await insert_bindings(self.connection, bindings)

    async def lock(self, lead_ids: Collection[str]) -> dict[str, LeadRow]:
        """Lock leads and return their rows.

        Raises:
            Contended: a lead was merged after its identity was looked up.

        """
        found = await self._leads(lead_ids, "FOR NO KEY UPDATE", limit=self._max_bytes)
        if any(lead.merged_into for lead in found.values()):
            raise Contended("merged_lead")
        return found

    async def lock_merged(self, lead_ids: Collection[str]) -> dict[str, LeadRow]:
        """Lock leads that may be merged, and return their rows."""
        return await self._leads(lead_ids, "FOR NO KEY UPDATE", limit=None)

    async def past(self, lead_ids: Collection[str], fields: Collection[str]) -> dict[str, list[PastValues]]:
        """Return the newest changes of ``fields``: see :func:`streams.intake.history.past_values`."""
        return await past_values(self.connection, lead_ids, fields, self._max_bytes)

    async def touches(self, lead_ids: Collection[str], after: Sequence[int]) -> dict[str, list[Touch]]:
        """Return the touches around the times ``after``: see :func:`streams.intake.history.outermost_touches`."""
        return await outermost_touches(self.connection, lead_ids, after)

    async def history(
        self, redelivered: Sequence[tuple[Event, Receipt]]
    ) -> tuple[dict[tuple[str, int], PastChange], dict[str, LeadRow]]:
        """Return the past changes by redelivered events, by (lead_id, version), and the current rows of their leads."""
        if not redelivered:
            return {}, {}
        rows = await self.connection.fetch(
            """
            SELECT h.lead_id, h.version, h.decided_at, h.changes, h.merged
            FROM unnest($1::uuid[], $2::bigint[]) AS w (lead_id, version) JOIN lead_history h USING (lead_id, version)
            """,
            *columns_of(((receipt.lead_id, receipt.version) for _, receipt in redelivered), 2),
        )
        past = {(str(row[0]), row[1]): PastChange(row[2], row[3], tuple(map(str, row[4]))) for row in rows}
        losers = [loser for change in past.values() for loser in change.merged]
        # A single event is never cut: its decision has to be published again, whatever its size.
        limit = self._max_bytes if len(redelivered) > 1 else None
        return past, await self._leads([*losers, *(receipt.lead_id for _, receipt in redelivered)], limit=limit)

    async def signal_types(self) -> frozenset[str]:
        """Return the event types for which campaign signals are published: all while a campaign file is invalid."""
        rows = await self.connection.fetch("SELECT DISTINCT event_type FROM signal_types")
        types = frozenset(row[0] for row in rows)
        return frozenset(registry().events) if _EVERY_TYPE in types else types

    async def refused(self, redelivered: Sequence[tuple[Event, Receipt]]) -> list[Refused]:
        """Return the identities of redelivered events that were not assigned for the first time by these events."""
        if not redelivered:
            return []
        events = {(receipt.lead_id, event.event_id): event for event, receipt in redelivered}
        rows = await self.connection.fetch(
            """
            SELECT r.lead_id, r.event_id, r.tenant, r.kind, r.value, r.holder_id, r.why
            FROM unnest($1::uuid[], $2::text[]) AS w (lead_id, event_id) JOIN merge_reviews r USING (lead_id, event_id)
            """,
            *columns_of(events, 2),
        )
        return [
            Refused(events[str(lead), event_id], (tenant, kind, value), str(lead), str(holder or ""), why)
            for lead, event_id, tenant, kind, value, holder, why in rows
        ]

    async def suppressions(self, identities: Sequence[Identity]) -> dict[Identity, Suppression]:
        """Return the suppressions of those of ``identities`` that are suppressed."""
        return await read_suppressions(self.connection, self._key, identities)

    async def write(self, decision: Decision, lifted: Mapping[Identity, Suppression]) -> list[Refused]:
        """Write the rows of ``decision``, erase its ``erasures``, lift suppressions; return new refused identities."""
        await write_decision(self.connection, decision)
        refused = await insert_refused(self.connection, decision.refused, decision.now)
        await lift(self.connection, self._key, lifted.items())
        await erase(self.connection, self._key, decision.erasures, decision.now)
        return refused

    async def _leads(self, lead_ids: Iterable[str], lock: str = "", *, limit: int | None) -> dict[str, LeadRow]:
        wanted = sorted(set(lead_ids))
        if not wanted:
            return {}
        found: dict[str, LeadRow] = {}
        size = 0
        # In small steps, so that leads that are too large together are not in memory at once.
        rows = self.connection.cursor(
            f"""
            SELECT lead_id, tenant, version, created_at, updated_at, erased_at, attributes, provenance, merged_into,
                split
            FROM leads WHERE lead_id = ANY($1::uuid[]) ORDER BY lead_id {lock}
            """,  # noqa: S608 - lock is a constant
            wanted,
            prefetch=_PREFETCH,
        )
        async for row in rows:
            lead_id = str(row[0])
            merged_into = str(row[8] or "")
            found[lead_id] = LeadRow(
                lead_id, row[1], row[2], row[3], row[4], row[5], row[6], row[7], merged_into, split=row[9]
            )
            size += utf8_bytes(row[6]) + utf8_bytes(row[7])
            if limit is not None and size > limit and len(found) < len(wanted):
                raise Cut(len(found) / len(wanted))
        return found


class Store:
    """The canonical record in Postgres, for intake.

    Args:
        pool: of connections.
        dedupe_days: the window of dedupe; an event that is repeated later is accepted again.
        max_bytes: maximum size of the leads of one transaction.
        policies: the identity policy of each tenant.
        suppression_key: the setting; "": the key that is stored in Postgres.

    """

    def __init__(
        self,
        pool: asyncpg.Pool,
        *,
        dedupe_days: int = 90,
        max_bytes: int = 16 << 20,
        policies: Policies = default_policy,
        suppression_key: str = "",
    ) -> None:
        self._pool = pool
        self._setting = suppression_key
        self._key: SuppressionKey | None = None
        self._policies = policies
        self._window = timedelta(days=dedupe_days)
        self._max_bytes = max_bytes
        self._next_months_at = 0  # time of the next call of make_month_partitions()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Run the body in one transaction.

        Raises:
            Contended: the transaction was rolled back.
            Cut: the leads of the body are too large together; the transaction was rolled back.
            DependencyUnavailable: Postgres is unavailable; it is unknown whether the transaction was committed.
            SettingsError: the suppression key is not the one of this installation.

        """
        key = self._key = self._key or await load_key(self._pool, self._setting)
        try:
            async with transaction(self._pool) as connection:
                yield Transaction(connection, self._window, self._max_bytes, self._policies, key)
        except tuple(_CONTENTION) as error:
            what = next(what for kind, what in _CONTENTION.items() if isinstance(error, kind))
            raise Contended(what) from error

    async def make_months(self, now: int) -> None:
        """Create the partitions of the coming months, at start and once a day. Inserts fail without a partition.

        Also complete the erasures of an earlier version, which kept identities and history.
        """
        if now < self._next_months_at:
            return
        async with transaction(self._pool) as connection:
            await connection.execute("SELECT make_month_partitions()")
        key = self._key = self._key or await load_key(self._pool, self._setting)
        erased = _PAST_ERASURES
        while erased == _PAST_ERASURES:
            async with transaction(self._pool) as connection:
                erased = await erase_past(connection, key, self._policies, now, _PAST_ERASURES)
        self._next_months_at = now + DAY_US
