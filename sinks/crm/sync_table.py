"""The table ``crm_sync``: the wanted and the synced version of each lead in each CRM.

:class:`LeasedTable` claims and releases the rows. This module defines which rows have work to do: those whose wanted
version is higher than their synced one. Neither version ever decreases.

Guarantees: methods do not deadlock. Each locks rows in the order of lead_id, except the claim, which waits for no lock.
No transaction is open while a CRM is called.

All methods raise DependencyUnavailable. Times are microseconds since 1970, UTC.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import orjson

from infra.clock import Clock, now_us
from infra.postgres.leased_rows import ClaimedRow, Done, Lease, Parked, Subject
from infra.postgres.leased_table import LeasedTable, WorkColumns
from infra.postgres.pool import connection, transaction
from sinks.crm import sync_statements as statements
from sinks.crm.fingerprints import Fingerprint

_COLUMNS = WorkColumns(
    table="crm_sync",
    key="lead_id",
    key_type="uuid",
    scope="destination",
    unfinished="wanted_version > synced_version",
    # A subquery of RETURNING sees the row as before the claim. If it had a lease then, its worker may have crashed.
    returning="work.tenant, work.wanted_version, work.remote_id, work.sent::text AS sent, (SELECT b.claimed_until "
    "= '-infinity' FROM crm_sync b WHERE b.destination = work.destination AND b.lead_id = work.lead_id) AS known",
)


@dataclass(frozen=True, slots=True)
class WantedVersion:
    """A sync request: the CRM should have ``lead_id`` at ``version`` or newer; decided at ``decided_at``."""

    lead_id: str
    tenant: str
    version: int
    decided_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncRow(ClaimedRow):
    """A claimed row of crm_sync. ``key``: the lead's id. ``wanted``: the wanted version.

    ``sent``: what the CRM was sent last; None if that is unknown. ``unsure``: a later call may have had an effect: it
    failed, or its worker crashed.
    """

    tenant: str
    wanted: int
    remote_id: str
    sent: Fingerprint | None = None
    unsure: bool = True


@dataclass(frozen=True, slots=True)
class Loser:
    """A lead that was merged into ``survivor_id`` and has a row. ``row``: None if another worker has leased it."""

    survivor_id: str
    row: SyncRow | None


@dataclass(frozen=True, slots=True)
class CanonicalLead:
    """The current canonical record of a lead. ``survivor_id``: the lead that it was merged into, or "".

    ``attributes``: None if the lead was merged, or if it was above the limit of :meth:`CrmSyncTable.leads`.
    ``merged_at``: when the lead was merged; None if it was not, or if the survivor took over its e-mail address.
    """

    version: int
    survivor_id: str
    survivor_remote_id: str
    attributes: Mapping[str, Any] | None
    erased: bool = False
    tenant: str = ""
    merged_at: int | None = None


@dataclass(frozen=True, slots=True)
class Owner:
    """The lead of a CRM record that conflicts with another lead. ``unsettled``: its record is going to change."""

    tenant: str
    unsettled: bool


@dataclass(frozen=True, slots=True)
class RecordWritten:
    """The CRM has the lead's record as of ``Done.version``. ``remote_id``: the CRM's id of it, "" if unknown."""

    remote_id: str
    sent: Fingerprint | None = None


@dataclass(frozen=True, slots=True)
class RecordRetired:
    """The CRM no longer has a record of the lead. ``survivors``: survivor's lead id -> new id of its CRM record."""

    survivors: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RecordErased:
    """The CRM no longer has anything about the erased lead. ``detail``: what was done.

    ``merged``: it was merged into another lead, so its row is deleted.
    """

    detail: str
    merged: bool = False


class CrmSyncTable(LeasedTable[SyncRow]):
    """The rows of one destination, such as hubspot."""

    def __init__(self, pool: asyncpg.Pool, destination: str, *, lease_s: float, clock: Clock = now_us) -> None:
        super().__init__(pool, _COLUMNS, destination, lease_s=lease_s, clock=clock)

    def read(self, record: Any) -> SyncRow:
        """See :class:`LeasedTable`."""
        subject = Subject(record["tenant"], lead_id=record["key"], version=record["wanted_version"])
        return SyncRow(
            key=record["key"],
            attempts=record["attempts"],
            last_error=record["last_error"],
            subject=subject,
            tenant=record["tenant"],
            wanted=record["wanted_version"],
            remote_id=record["remote_id"],
            sent=orjson.loads(record["sent"]) if record["sent"] else None,
            unsure=bool(record["last_error"]) or not record["known"],
        )

    async def want(self, wanted: Sequence[WantedVersion], destination: str = "") -> None:
        """Store wanted versions, at most one per lead. A version that is not newer than the stored one is ignored.

        ``destination``: of the rows, if it is not that of this table.
        """
        columns = _columns([(w.lead_id, w.tenant, w.version, w.decided_at) for w in wanted], 4)
        async with connection(self._pool) as postgres:
            await postgres.execute(statements.WANT, destination or self._scope, self._clock(), *columns)

    async def claim_losers(self, lease: Lease[SyncRow], survivors: Sequence[str]) -> list[Loser]:
        """Claim under the same lease the leads that were merged into ``survivors`` and are not in ``lease``."""
        claimed = [row.key for row in lease.rows]
        async with connection(self._pool) as postgres:
            found = await postgres.fetch(
                statements.CLAIM_LOSERS, self._scope, self._clock(), lease.until, survivors, claimed
            )
        return [Loser(str(r["survivor_id"]), None if r["tenant"] is None else self.read(r)) for r in found]

    async def leads(self, lead_ids: Sequence[str], max_bytes: int) -> dict[str, CanonicalLead]:
        """Return the current canonical records of ``lead_ids``; a deleted lead is missing.

        Attributes are read until they have ``max_bytes`` bytes as JSON, those of the rows that are due longest, and of
        one lead at least.
        """
        async with connection(self._pool) as postgres:
            rows = await postgres.fetch(statements.LEADS, self._scope, lead_ids, max_bytes)
        return {
            str(row["lead_id"]): CanonicalLead(
                row["version"],
                str(row["merged_into"] or ""),
                row["survivor_remote_id"] or "",
                None if row["attributes"] is None else orjson.loads(row["attributes"]),
                row["erased"],
                row["tenant"],
                merged_at=row["merged_at"],
            )
            for row in rows
        }

    async def owners(self, lead_ids: Sequence[str]) -> dict[str, Owner]:
        """Return those of ``lead_ids`` that are or were leads with a record in this CRM."""
        async with connection(self._pool) as postgres:
            rows = await postgres.fetch(statements.OWNERS, self._scope, lead_ids)
        return {str(row["lead_id"]): Owner(row["tenant"], row["unsettled"]) for row in rows}

    async def finish(self, lease: Lease[SyncRow], done: Sequence[tuple[SyncRow, Done]]) -> Collection[str]:
        """Delete the rows of :class:`RecordRetired`, and store the version of RecordWritten and RecordErased.

        Synced versions are stored even if the lease was lost, since they never decrease. So every key is returned.
        """
        retired = [(row, d.value) for row, d in done if isinstance(d.value, RecordRetired)]
        gone = [row for row, d in done if isinstance(d.value, RecordRetired) or (_is_erased(d) and d.value.merged)]
        written = [(row.key, d.version, d.value) for row, d in done if isinstance(d.value, RecordWritten)]
        survivors = {survivor: remote_id for _, r in retired for survivor, remote_id in r.survivors.items()}
        erased = {
            row.key: (row.tenant, d.version, d.value.detail) for row, d in done if isinstance(d.value, RecordErased)
        }
        keys = [row.key for row, _ in done]
        changed = [row.key for row, d in done if d.what]
        async with self._locked([*survivors, *keys]) as postgres:
            if survivors:
                await postgres.execute(statements.SET_REMOTE_ID, self._scope, list(survivors), list(survivors.values()))
            if gone:
                wanted = [(row.key, row.wanted) for row in gone]
                await postgres.execute(statements.DELETE, self._scope, lease.until, *_columns(wanted, 2))
                await postgres.execute(statements.RESET, self._scope, lease.until, [row.key for row in gone])
            if written:
                columns = _columns([(key, version, v.remote_id, _json(v.sent)) for key, version, v in written], 4)
                await postgres.execute(statements.SYNCED, self._scope, self._clock(), lease.until, *columns)
            if erased:
                # Not the merged ones: they are deleted, or due again because a newer version was wanted meanwhile.
                merged = {row.key for row in gone}
                kept = _columns([(key, *each) for key, each in erased.items() if key not in merged], 4)
                await postgres.execute(statements.ERASED, self._scope, self._clock(), lease.until, *kept)
                columns = _columns([(key, *each) for key, each in erased.items()], 4)
                await postgres.execute(statements.RECORD_ERASED, f"crm-{self._scope}", self._clock(), *columns)
            if changed:
                await postgres.execute(statements.RELEASE_CONFLICTS, self._scope, self._clock(), changed)
        return keys

    async def park(self, lease: Lease[SyncRow], parked: Sequence[tuple[SyncRow, Parked, int]]) -> Collection[str]:
        """Park rows; a row that was rejected at ``Parked.version`` is due again when a newer version is wanted.

        ``Parked.value``: the lead whose record conflicts, or None. When that is written or retired, the row is due.
        """
        rows = [(row.key, p.version, p.reason.value, due, p.attempts, p.detail, p.value) for row, p, due in parked]
        async with self._locked([row.key for row, _, _ in parked]) as postgres:
            found = await postgres.fetch(statements.PARK, self._scope, self._clock(), lease.until, *_columns(rows, 7))
        return {record["lead_id"] for record in found}

    async def listen(self, wake: asyncio.Event) -> None:
        """Wait until cancelled, without a connection: the consumer of this process wakes the engine."""
        wake.set()
        await asyncio.Event().wait()

    @asynccontextmanager
    async def _locked(self, lead_ids: Sequence[str]) -> AsyncIterator[asyncpg.Connection]:
        """Run the body in a transaction in which the rows of ``lead_ids`` are locked."""
        async with transaction(self._pool) as postgres:
            await postgres.execute(statements.LOCK, self._scope, lead_ids)
            yield postgres


def _is_erased(done: Done) -> bool:
    return isinstance(done.value, RecordErased)


def _columns(rows: Sequence[tuple[Any, ...]], width: int) -> list[list[Any]]:
    return [[row[i] for row in rows] for i in range(width)]


def _json(sent: Fingerprint | None) -> str | None:
    return None if sent is None else orjson.dumps(sent).decode()
