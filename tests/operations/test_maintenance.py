"""The daily job deletes what is older than its window, and nothing else."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import asyncpg
import pytest

from infra.postgres.pool import connect
from operations.maintenance import clean
from tests.conftest import Stack

pytestmark = pytest.mark.integration

NOW = datetime(2026, 11, 25, tzinfo=UTC)


@pytest.fixture
async def pool(stack: Stack) -> AsyncIterator[asyncpg.Pool]:
    pool = await connect(stack.dsn, size=4, application="tests")
    yield pool
    await pool.close()


async def partitions(pool: asyncpg.Pool) -> set[str]:
    rows = await pool.fetch("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'receipts'::regclass")
    return {row[0] for row in rows}


async def make_partition(pool: asyncpg.Pool, name: str, month: str, after: str) -> None:
    await pool.execute(f"CREATE TABLE {name} PARTITION OF receipts FOR VALUES FROM ('{month}') TO ('{after}')")
    await pool.execute(
        'INSERT INTO receipts (key, month, topic, partition, "offset", lead_id, version)'
        " VALUES ($1, $2::text::date, 't', 0, 0, $1, 1)",
        uuid.uuid4(),
        month,
    )


async def test_only_partitions_that_are_completely_past_the_window_are_dropped(pool: asyncpg.Pool) -> None:
    before = await partitions(pool)
    await make_partition(pool, "receipts_2026_07", "2026-07-01", "2026-08-01")
    await make_partition(pool, "receipts_2026_08", "2026-08-01", "2026-09-01")

    deleted = await clean(pool, 90, NOW)  # the window begins on 2026-08-27

    assert deleted["receipt_partitions"] == 1
    assert await partitions(pool) == before | {"receipts_2026_08"}
    assert (await clean(pool, 60, NOW))["receipt_partitions"] == 1
    assert await partitions(pool) == before


async def test_a_partition_in_use_is_dropped_later_and_keeps_nothing_else(
    pool: asyncpg.Pool, caplog: pytest.LogCaptureFixture
) -> None:
    await make_partition(pool, "receipts_2020_01", "2020-01-01", "2020-02-01")
    await make_partition(pool, "receipts_2020_02", "2020-02-01", "2020-03-01")
    async with pool.acquire() as other, other.transaction():
        await other.execute("SELECT count(*) FROM receipts_2020_01")
        assert (await clean(pool, 90, NOW))["receipt_partitions"] == 1
    assert [record.__dict__["fields"] for record in caplog.records] == [{"what": "receipts_2020_01"}]
    assert (await clean(pool, 90, NOW))["receipt_partitions"] == 1


@pytest.mark.parametrize("table", ["receipts", "enrichment_results", "messages_sent"])
async def test_a_locked_table_is_skipped_by_every_transaction(
    pool: asyncpg.Pool, unique: str, table: str, caplog: pytest.LogCaptureFixture
) -> None:
    await message(pool, unique, "old", "sent", "event", 91)
    last = max(name for name in await partitions(pool) if name[-1].isdigit())
    await pool.execute(f"DROP TABLE {last}")  # so that it has to be created
    async with pool.acquire() as other, other.transaction():
        await other.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        deleted = await asyncio.wait_for(clean(pool, 90), 60)
    assert deleted["messages"] == (0 if table == "messages_sent" else 1)
    assert "locked; skipped until the next run" in caplog.text
    await clean(pool, 90)
    assert last in await partitions(pool)


async def message(pool: asyncpg.Pool, unique: str, name: str, state: str, once_per: str, days: int) -> None:
    await pool.execute(
        """
        INSERT INTO messages_sent (message_id, tenant, lead_id, event_id, campaign, channel, purpose, topic, partition,
            "offset", requested_at, request, state, next_attempt_at, once_per)
        VALUES ($1, $2, $3, 'e', 'c', 'email', '', 't', 0, 0, now() - make_interval(days => $4), $5, $6, now(), $7)
        """,
        f"{name}-{unique}",
        unique,
        uuid.uuid4(),
        days,
        b"x" if state in ("waiting", "sending") else None,
        state,
        once_per,
    )


async def test_finished_messages_and_expired_results_are_deleted(pool: asyncpg.Pool, unique: str) -> None:
    await message(pool, unique, "old", "sent", "event", 91)
    await message(pool, unique, "failed", "failed", "event", 91)
    await message(pool, unique, "new", "sent", "event", 80)
    await message(pool, unique, "waits", "waiting", "event", 400)
    await message(pool, unique, "once", "sent", "lead", 4000)
    for name, hours in (("gone", -1), ("valid", 1)):
        await pool.execute(
            "INSERT INTO enrichment_results"
            " VALUES ($1, $2, $3, $4, NULL, NULL, 0, now(), now() + make_interval(hours => $5))",
            f"{name}-{unique}",
            b"k",
            unique,
            uuid.uuid4(),
            hours,
        )

    deleted = await clean(pool, 90)

    assert deleted["messages"] >= 2
    assert deleted["enrichment_results"] >= 1
    left = {
        row[0].partition("-")[0]
        for row in await pool.fetch("SELECT message_id FROM messages_sent WHERE tenant = $1", unique)
    }
    assert left == {"new", "waits", "once"}
    results = await pool.fetch("SELECT provider FROM enrichment_results WHERE tenant = $1", unique)
    assert [row[0] for row in results] == [f"valid-{unique}"]
    assert (await clean(pool, 90))["messages"] == 0
