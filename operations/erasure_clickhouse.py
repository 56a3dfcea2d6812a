"""Removes erased leads from ClickHouse: what was said until the erasure, at once and in what is still to come.

The rows of ``lead_events`` stay, without properties, changes and context: counts and the ledger do not change. Of
``leads`` the versions before the erasure are deleted. ``outcomes`` and ``dead_letters`` have no values.

The events of a lead can reach ClickHouse after its erasure. A lead has a row for each version in lead_history, so it is
known which are missing: the lead is done when all of them are there and removed.

The data of the parts that a mutation replaces stays on disk until ClickHouse deletes these (``old_parts_lifetime``,
8 minutes).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

import asyncpg

from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_US, Clock, now_us
from infra.postgres.leased_rows import Done, Lease, Released
from infra.postgres.pool import connection
from operations.erasure_table import ErasureRow

LEADS = 200  # of one mutation
_EVERY_S = 10.0  # between two mutations
_SETTLE_US = 5_000_000  # how long to wait for missing events before the first mutation: usually one is enough
_GIVE_UP_US = 15 * DAY_US  # longer than the retention of leads.changed: nothing can come any more
_MERGED_VERSION = 2**63 - 1  # of the row of leads that says that the lead was merged
_SHARE = 4  # the next attempt is after so much of the age

_HISTORY = """
SELECT w.lead_id, count(h.version) FILTER (WHERE h.version <= w.version) AS versions,
       array_agg(h.version) FILTER (WHERE h.version <= w.version AND h.occurred_at > w.erased_at) AS kept
FROM unnest($1::uuid[], $2::bigint[], $3::timestamptz[]) AS w (lead_id, version, erased_at)
LEFT JOIN lead_history h ON h.lead_id = w.lead_id GROUP BY w.lead_id
"""
_FOUND = """
SELECT toString(lead_id) AS id, uniqExact(version) AS versions FROM lead_events_store
WHERE {which} GROUP BY lead_id
"""
_EVENTS_LEFT = """
SELECT count() AS n FROM lead_events_store
WHERE {which}{kept} AND (properties != '{{}}' OR changes != '{{}}' OR notEmpty(context))
"""
_BLANK = """
ALTER TABLE lead_events_store UPDATE properties = '{{}}', changes = '{{}}', context = map()
WHERE {which}{kept} SETTINGS mutations_sync = 2
"""
_LEADS_LEFT = "SELECT count() AS n FROM leads_store WHERE {which}"
_DELETE = "ALTER TABLE leads_store DELETE WHERE {which} SETTINGS mutations_sync = 2"

_Erased = Mapping[str, int]  # lead -> its last version to remove


class ClickHouseErasure:
    """The handler of the engine, with leases of up to :data:`LEADS` leads."""

    def __init__(self, pool: asyncpg.Pool, server: ClickHouse, clock: Clock = now_us) -> None:
        self._pool = pool
        self._server = server
        self._clock = clock
        self._next_at = 0.0

    async def handle(self, lease: Lease[ErasureRow]) -> list[tuple[ErasureRow, Done | Released]]:
        """Remove the leads of ``lease``; return their results.

        A mutation is expensive, whatever the number of its leads. So there is at most one in 10 s, of all leads that
        were erased in the meantime.

        Raises:
            DependencyUnavailable: Postgres or ClickHouse is unavailable.

        """
        await asyncio.sleep(max(0.0, self._next_at - time.monotonic()))
        try:
            return await self._handle(lease)
        finally:
            self._next_at = time.monotonic() + _EVERY_S

    async def _handle(self, lease: Lease[ErasureRow]) -> list[tuple[ErasureRow, Done | Released]]:
        expected, kept = await self._expected(lease.rows)
        versions = {
            key: row.version if key == row.key else _MERGED_VERSION for row in lease.rows for key in row.lead_ids
        }
        found = await self._found(versions)
        now = self._clock()
        missing = {row.key for row in lease.rows if any(found.get(k, 0) < expected[k] for k in row.lead_ids)}
        ready = [row for row in lease.rows if row.key not in missing or now >= row.decided_at + _SETTLE_US]
        await self._remove({key: versions[key] for row in ready for key in row.lead_ids}, kept)
        return [(row, self._result(row, now, missing=row.key in missing)) for row in lease.rows]

    def _result(self, row: ErasureRow, now: int, *, missing: bool) -> Done | Released:
        age = now - row.decided_at
        if not missing:
            return Done(None, detail="values removed from lead_events and leads")
        if age > _GIVE_UP_US:
            return Done(None, detail="values removed from lead_events and leads; events that never arrived are expired")
        return Released(max(1.0, age / _SHARE / 1e6))

    async def _expected(self, rows: Sequence[ErasureRow]) -> tuple[dict[str, int], list[tuple[str, int]]]:
        """Return the number of versions of each lead, and the versions that were said after its erasure."""
        wanted = [
            (key, row.version if key == row.key else _MERGED_VERSION, row.erased_at)
            for row in rows
            for key in row.lead_ids
        ]
        async with connection(self._pool) as postgres:
            found = await postgres.fetch(_HISTORY, *(list(column) for column in zip(*wanted, strict=True)))
        kept = [(str(record["lead_id"]), version) for record in found for version in record["kept"] or ()]
        return {str(record["lead_id"]): record["versions"] for record in found}, kept

    async def _found(self, erased: _Erased) -> dict[str, int]:
        rows: list[dict[str, Any]] = await self._server.query(_FOUND.format(which=_which(erased)))
        return {row["id"]: row["versions"] for row in rows}

    async def _remove(self, erased: _Erased, kept: Iterable[tuple[str, int]]) -> None:
        if not erased:
            return
        later = ", ".join(f"(toUUID('{UUID(key)}'), {version:d})" for key, version in kept)
        events = {"which": _which(erased), "kept": f" AND (lead_id, version) NOT IN ({later})" if later else ""}
        if (await self._server.query(_EVENTS_LEFT.format(**events)))[0]["n"]:
            await self._server.execute(_BLANK.format(**events))
        # The row of the erasure itself, and of the merge, stays.
        leads = {"which": _which({key: version - 1 for key, version in erased.items()})}
        if (await self._server.query(_LEADS_LEFT.format(**leads)))[0]["n"]:
            await self._server.execute(_DELETE.format(**leads))


def _which(erased: _Erased) -> str:
    """Return the condition of the rows of ``erased``. Written out: a mutation takes no parameters."""
    ids = ", ".join(f"toUUID('{UUID(key)}')" for key in erased)
    texts = ", ".join(f"'{UUID(key)}'" for key in erased)
    versions = ", ".join(f"toInt64({version:d})" for version in erased.values())
    return f"lead_id IN ({ids}) AND version <= transform(toString(lead_id), [{texts}], [{versions}], toInt64(0))"
