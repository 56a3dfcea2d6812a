"""The transaction in which a batch's events are decided, and its lookups.

Lock order: identities, leads (by lead_id), receipts. This avoids deadlocks. If Postgres still detects one, or if
another worker wrote between a lookup and its write, :class:`Contended` is raised and the transaction is rolled back:
decide the events again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

import asyncpg

from infra.clock import DAY_US, to_datetime
from infra.postgres.pool import transaction
from schemas.registry import registry
from streams.intake.decide import Decision, LeadRow, PastChange
from streams.intake.dedupe import Receipt
from streams.intake.event import Event, Identity
from streams.intake.merge import TOUCHING, Touch
from streams.intake.writes import columns_of, insert_bindings, write_decision

_CLOCK_ERROR = timedelta(seconds=300)  # by how much a worker's clock may be wrong
_EVERY_TYPE = "*"  # in signal_types: written by `leadstream prepare` while a campaign file is invalid
_MONTH_LOCK = 7017840
_CONTENTION = {
    asyncpg.UniqueViolationError: "unique_violation",
    asyncpg.DeadlockDetectedError: "deadlock",
    asyncpg.SerializationError: "serialization",
}


class Contended(Exception):  # noqa: N818 - a request to retry, not a defect
    """Another worker decided about the same leads at the same time. ``what``: the kind of conflict."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class Transaction:
    """One transaction: the lookups and the write of one decision. Call the methods in the order of this class."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection

    async def receipts(self, events: Iterable[Event], now: int) -> dict[str, Receipt]:
        """Return the receipts of those ``events`` that were accepted before, by event key.

        The key of ``receipts`` contains the month, so it cannot detect a duplicate across a month boundary. Near a
        boundary an advisory lock therefore lets only one worker decide at a time.
        """
        at = to_datetime(now)
        if (at - _CLOCK_ERROR).month != (at + _CLOCK_ERROR).month:
            await self.connection.execute("SELECT pg_advisory_xact_lock($1)", _MONTH_LOCK)
        rows = await self.connection.fetch(
            'SELECT key, topic, partition, "offset", lead_id, version FROM receipts WHERE key = ANY($1::uuid[])',
            [event.key for event in events],
        )
        return {row[0].hex: Receipt(row[1], row[2], row[3], str(row[4]), row[5]) for row in rows}

    async def owners(self, events: Sequence[Event]) -> dict[Identity, str]:
        """Return the leads of those of the events' identities that are stored."""
        wanted = list(dict.fromkeys(identity for event in events for identity in event.identities))
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

    async def bind(self, bindings: Mapping[Identity, str]) -> None:
        """Write new identities; waits for another worker that has written one of them and not committed yet."""
        await insert_bindings(self.connection, bindings)

    async def lock(self, lead_ids: Collection[str]) -> dict[str, LeadRow]:
        """Lock and return leads. Raises Contended where one was merged since its identity was looked up."""
        found = await self._leads(lead_ids, "FOR NO KEY UPDATE")
        if any(lead.merged_into for lead in found.values()):
            raise Contended("merged_lead")
        return found

    async def touches(self, lead_ids: Collection[str]) -> dict[str, list[Touch]]:
        """Return every touch of stored leads, those of the leads merged into them included, from their history."""
        found: dict[str, list[Touch]] = {lead_id: [] for lead_id in lead_ids}
        if not found:
            return found
        rows = await self.connection.fetch(
            """
            WITH own AS (
                SELECT w AS lead_id, w AS alias_id FROM unnest($1::uuid[]) AS w
                UNION ALL SELECT lead_id, alias_id FROM lead_aliases WHERE lead_id = ANY($1::uuid[])
            )
            SELECT own.lead_id, h.occurred_at, h.event_id, h.source
            FROM own JOIN lead_history h ON h.lead_id = own.alias_id WHERE h.event_type = ANY($2::text[])
            """,
            list(found),
            [kind.name for kind in registry().events.values() if kind.authority in TOUCHING],
        )
        for row in rows:
            found[str(row[0])].append((row[1], row[2], row[3]))
        return found

    async def history(
        self, redelivered: Sequence[tuple[Event, Receipt]]
    ) -> tuple[dict[tuple[str, int], PastChange], dict[str, LeadRow]]:
        """Return what was decided about redelivered events, by lead_id and version, and their leads as they are now."""
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
        return past, await self._leads([*losers, *(receipt.lead_id for _, receipt in redelivered)])

    async def signal_types(self) -> frozenset[str]:
        """Return the event types that campaigns listen to now; every type while one of their files is invalid."""
        rows = await self.connection.fetch("SELECT DISTINCT event_type FROM signal_types")
        types = frozenset(row[0] for row in rows)
        return frozenset(registry().events) if _EVERY_TYPE in types else types

    async def write(self, decision: Decision) -> None:
        """Write the decision; it takes effect when the transaction commits."""
        await write_decision(self.connection, decision)

    async def _leads(self, lead_ids: Iterable[str], lock: str = "") -> dict[str, LeadRow]:
        wanted = sorted(set(lead_ids))
        if not wanted:
            return {}
        rows = await self.connection.fetch(
            f"""
            SELECT lead_id, tenant, version, created_at, updated_at, erased_at, attributes, provenance, merged_into
            FROM leads WHERE lead_id = ANY($1::uuid[]) ORDER BY lead_id {lock}
            """,  # noqa: S608 - lock is a clause of ours
            wanted,
        )
        return {
            (lead_id := str(row[0])): LeadRow(
                lead_id, row[1], row[2], row[3], row[4], row[5], row[6], row[7], str(row[8] or "")
            )
            for row in rows
        }


class Store:
    """The canonical record, as intake sees it."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._months_at = 0  # when to make partitions next

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Run the body in one transaction.

        Raises Contended: it is rolled back. DependencyUnavailable: it may or may not be committed.
        """
        try:
            async with transaction(self._pool) as connection:
                yield Transaction(connection)
        except tuple(_CONTENTION) as error:
            what = next(what for kind, what in _CONTENTION.items() if isinstance(error, kind))
            raise Contended(what) from error

    async def make_months(self, now: int) -> None:
        """Make the partitions of the months to come, at start and once a day; without them nothing can be written."""
        if now >= self._months_at:
            async with transaction(self._pool) as connection:
                await connection.execute("SELECT make_month_partitions()")
            self._months_at = now + DAY_US
