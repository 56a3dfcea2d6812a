"""The SQL statements on ``crm_sync``."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import asyncpg
import pytest

from infra.outcomes import Reason, What
from infra.postgres.leased_rows import Done, Lease, Parked
from infra.postgres.pool import connect
from sinks.crm.sync_table import CrmSyncTable, RecordRetired, RecordWritten, WantedVersion

START = 1_770_000_000_000_000

pytestmark = pytest.mark.integration


async def test_no_statement_reads_the_whole_table(world: Any) -> None:
    await world.pool.execute(
        "INSERT INTO crm_sync (destination, tenant, lead_id, wanted_version, synced_version, last_wanted_at) "
        "SELECT $1, 'acme', gen_random_uuid(), 1, (i % 2), now() FROM generate_series(1, 50000) i",
        world.destination,
    )
    await world.pool.execute(
        "INSERT INTO lead_aliases (alias_id, lead_id) "
        "SELECT gen_random_uuid(), lead_id FROM crm_sync WHERE destination = $1 LIMIT 2000",
        world.destination,
    )
    await world.pool.execute("VACUUM ANALYZE crm_sync")
    await world.pool.execute("ANALYZE lead_aliases")
    # One session: its counters are there when it has flushed them.
    async with await connect(world.dsn, size=1, application="tests") as pool:
        before = await _sequential_scans(pool)
        await _each_statement(CrmSyncTable(pool, world.destination, lease_s=60))
        assert await _sequential_scans(pool) == before
        assert await pool.fetchval("SELECT count(*) FROM crm_sync WHERE tenant = 'nobody'") == 0
        assert await _sequential_scans(pool) > before, "the counters do not count"


async def _each_statement(table: CrmSyncTable) -> None:
    lease = await table.claim(100)
    synced, retired, parked, released, rest = (lease.rows[start : start + 20] for start in range(0, 100, 20))
    await table.claim_losers(lease, [row.key for row in lease.rows])
    await table.leads([row.key for row in lease.rows], 1 << 20)
    await table.owners([row.key for row in lease.rows])
    written = [(row, Done(What.SYNCED, version=1, value=RecordWritten("1"))) for row in synced]
    gone = [(row, Done(What.SYNCED, value=RecordRetired({rest[0].key: "2"}))) for row in retired]
    assert len(await table.finish(lease, [*written, *gone])) == 40
    assert len(await table.park(lease, [(row, Parked(Reason.CONFLICT), START) for row in parked])) == 20
    await table.release(lease, released)
    assert await table.renew(Lease(lease.until, rest))
    await table.want([WantedVersion(row.key, "acme", 9, START) for row in lease.rows])
    await table.unpark([row.key for row in lease.rows])


async def _sequential_scans(pool: asyncpg.Pool) -> int:
    await pool.execute("SELECT pg_stat_force_next_flush()")
    count: int = await pool.fetchval("SELECT sum(seq_scan)::int FROM pg_stat_user_tables WHERE relname ~ '^crm_sync_p'")
    return count


async def test_one_batch_may_want_new_and_known_leads(world: Any) -> None:
    known = await world.lead(version=3)
    new = str(uuid.uuid4())
    await world.table().want([WantedVersion(new, "acme", 1, START), WantedVersion(known, "acme", 2, START)])
    assert (await world.row(known))["wanted_version"] == 3
    assert (await world.row(new))["wanted_version"] == 1


async def test_concurrent_requests_and_results_for_the_same_rows_do_not_deadlock(world: Any) -> None:
    leads = [str(uuid.uuid4()) for _ in range(1000)]
    table = world.table()
    version = 0

    async def want() -> None:
        nonlocal version
        for _ in range(15):
            version += 1
            await table.want([WantedVersion(lead_id, "acme", version, START) for lead_id in leads])

    async def sync(order: int) -> None:
        for _ in range(15):
            lease = await table.claim(600)
            rows = lease.rows[::order]
            done = [(row, Done(What.SYNCED, version=row.wanted, value=RecordWritten("1"))) for row in rows[::3]]
            await table.finish(lease, done)
            await table.park(lease, [(row, Parked(Reason.CONFLICT), START) for row in rows[1::3]])
            await table.release(lease, rows[2::3])

    await want()
    await asyncio.gather(want(), sync(1), sync(-1))
    assert await world.rows() == 1000
