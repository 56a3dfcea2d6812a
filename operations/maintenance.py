"""The daily job: deletes what is no longer needed, and makes the coming months' partitions.

- receipts whose month is completely older than the window of dedupe (``LEADSTREAM_DEDUPE_DAYS``): whole partitions
- expired results of enrichment providers
- finished messages older than the window, except those of campaigns with ``once_per: lead``: their rows are the memory
  that the lead has got the message

Guarantees: every transaction is short, and none waits for a lock for more than 2 seconds: intake waits no longer, once
for each partition that is dropped. What is locked for longer is skipped until the next run, with a log line. Any number
of instances may run.

Crash: what was deleted stays deleted; the next run deletes the rest.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import asyncpg

from infra.postgres.pool import transaction
from infra.runtime import log

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
        DependencyUnavailable: Postgres is unavailable.

    """
    await _run(pool, "the partitions of coming months", "SELECT make_month_partitions()")
    oldest = ((now or datetime.now(UTC)) - timedelta(days=days)).strftime("receipts_%Y_%m")
    async with _transaction(pool) as connection:
        names = [row["name"] for row in await connection.fetch(_PARTITIONS)]
    outdated = [name for name in names if name < oldest]
    dropped = [await _run(pool, name, f"DROP TABLE IF EXISTS {name}") is not None for name in outdated]
    return {
        "receipt_partitions": sum(dropped),
        "enrichment_results": await _delete(pool, "enrichment_results", _EXPIRED_RESULTS),
        "messages": await _delete(pool, "messages_sent", _FINISHED_MESSAGES, days),
    }


async def _delete(pool: asyncpg.Pool, table: str, statement: str, *arguments: int) -> int:
    """Delete in short transactions; return the number of rows."""
    total = 0
    while True:
        status = await _run(pool, table, statement, _ROWS, *arguments)
        deleted = int(status.rpartition(" ")[2]) if status else 0
        total += deleted
        if deleted < _ROWS:
            return total


async def _run(pool: asyncpg.Pool, what: str, statement: str, *arguments: int) -> str | None:
    """Run a statement in a transaction; return its status, or None if ``what`` is locked."""
    try:
        async with _transaction(pool) as connection:
            return str(await connection.execute(statement, *arguments))
    except asyncpg.LockNotAvailableError:
        log(STAGE).warning("locked; skipped until the next run", extra={"fields": {"what": what}})
        return None


@asynccontextmanager
async def _transaction(pool: asyncpg.Pool) -> AsyncIterator[asyncpg.Connection]:
    async with transaction(pool) as connection:
        await connection.execute(_LOCK_TIMEOUT)
        yield connection
