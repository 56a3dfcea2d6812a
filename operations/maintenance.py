"""The daily job: deletes what is no longer needed, and makes the coming months' partitions.

- receipts whose month is completely older than the window of dedupe (``LEADSTREAM_DEDUPE_DAYS``): whole partitions
- expired results of enrichment providers
- finished messages older than the window, except those of campaigns with ``once_per: lead``: their rows are the memory
  that the lead has got the message

Guarantees: every transaction is short, and none waits for a lock for more than 2 seconds: intake waits no longer, once
for each partition that is dropped. Any number of instances may run.

Crash: what was deleted stays deleted; the next run deletes the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import asyncpg

from infra.errors import DependencyUnavailable
from infra.postgres.pool import transaction

STAGE = "maintenance"
_ROWS = 5_000  # of one transaction
_LOCK_TIMEOUT = "SET LOCAL lock_timeout = '2s'"

_PARTITIONS = """
SELECT c.relname AS name FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'receipts'::regclass ORDER BY 1
"""
_EXPIRED_RESULTS = """
DELETE FROM enrichment_results WHERE (provider, key) IN (
    SELECT provider, key FROM enrichment_results WHERE expires_at < now() LIMIT $1 FOR UPDATE SKIP LOCKED
)
"""
_FINISHED_MESSAGES = """
DELETE FROM messages_sent WHERE message_id IN (
    SELECT message_id FROM messages_sent WHERE state IN ('sent', 'failed', 'skipped') AND once_per = 'event'
        AND requested_at < now() - make_interval(days => $2) LIMIT $1 FOR UPDATE SKIP LOCKED
)
"""


async def clean(pool: asyncpg.Pool, days: int, now: datetime | None = None) -> Mapping[str, int]:
    """Run the job once.

    Args:
        pool: of the database.
        days: the window of dedupe.
        now: current time, for tests.

    Returns:
        The number of deleted partitions of receipts, results and messages.

    Raises:
        DependencyUnavailable: Postgres is unavailable, or a partition is locked for too long.

    """
    async with transaction(pool) as connection:
        await connection.execute("SELECT make_month_partitions()")
    oldest = ((now or datetime.now(UTC)) - timedelta(days=days)).strftime("receipts_%Y_%m")
    async with transaction(pool) as connection:
        names = [row["name"] for row in await connection.fetch(_PARTITIONS)]
    outdated = [name for name in names if name < oldest]
    for name in outdated:
        await _drop(pool, name)
    return {
        "receipt_partitions": len(outdated),
        "enrichment_results": await _delete(pool, _EXPIRED_RESULTS),
        "messages": await _delete(pool, _FINISHED_MESSAGES, days),
    }


async def _drop(pool: asyncpg.Pool, partition: str) -> None:
    try:
        async with transaction(pool) as connection:
            await connection.execute(_LOCK_TIMEOUT)
            await connection.execute(f"DROP TABLE IF EXISTS {partition}")
    except asyncpg.LockNotAvailableError as error:
        raise DependencyUnavailable("Postgres", f"{partition} is locked") from error


async def _delete(pool: asyncpg.Pool, statement: str, *arguments: int) -> int:
    """Delete in short transactions; return the number of rows."""
    total = 0
    while True:
        async with transaction(pool) as connection:
            deleted = int((await connection.execute(statement, _ROWS, *arguments)).rpartition(" ")[2])
        total += deleted
        if deleted < _ROWS:
            return total
