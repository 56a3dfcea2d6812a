"""Whether a stack has nothing left to do: no lag of any group, no unfinished row. Read from Kafka and by SQL."""

from __future__ import annotations

import asyncio
import time

import asyncpg
from confluent_kafka import KafkaException, TopicPartition

from infra.kafka.client import metadata, reader
from infra.kafka.topics import installed_groups
from infra.settings import Settings

_WAIT_S = 10
_POLL_S = 0.5
_IDLE_POLLS = 4
_ROWS = {
    "crm_sync": "synced_version < wanted_version AND next_attempt_at < 'infinity'",
    "messages_sent": "state IN ('waiting', 'sending')",
    "enrichment_work": "true",
}


def lags(settings: Settings) -> dict[str, int]:
    """Return the records that each consumer group still has to read, of those that have any."""
    found: dict[str, int] = {}
    for group, topics in installed_groups().items():
        consumer = reader(settings, group)
        try:
            shown = metadata(consumer, timeout_s=_WAIT_S).topics
            places = [TopicPartition(t, p) for t in topics if t in shown for p in shown[t].partitions]
            for place in consumer.committed(places, _WAIT_S):
                end = consumer.get_watermark_offsets(TopicPartition(place.topic, place.partition), _WAIT_S)[1]
                if left := end - max(place.offset, 0):
                    found[group] = found.get(group, 0) + left
        finally:
            consumer.close()
    return found


async def unfinished(pool: asyncpg.Pool) -> dict[str, int]:
    """Return the number of rows of unfinished work by table."""
    counts = {
        table: await pool.fetchval(f"SELECT count(*) FROM {table} WHERE {condition}")  # noqa: S608 - constants
        for table, condition in _ROWS.items()
        if await pool.fetchval("SELECT to_regclass($1) IS NOT NULL", table)
    }
    return {table: count for table, count in counts.items() if count}


async def wait_until_idle(settings: Settings, pool: asyncpg.Pool, *, ignored: tuple[str, ...], stalled_s: float) -> str:
    """Wait until nothing is left to do; return "" then, or what is left if it does not change for ``stalled_s``."""
    idle, changed_at = 0, time.monotonic()
    last: dict[str, int] = {}
    while idle < _IDLE_POLLS:
        try:
            left = await asyncio.to_thread(lags, settings) | await unfinished(pool)
        except (KafkaException, OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            left = {f"unavailable: {type(error).__name__}": 1}
        left = {name: count for name, count in left.items() if name not in ignored}
        idle = 0 if left else idle + 1
        if left != last:
            last, changed_at = left, time.monotonic()
        if time.monotonic() - changed_at > stalled_s:
            return f"still to do, unchanged for {stalled_s:.0f} s: {left}" if left else ""
        await asyncio.sleep(_POLL_S)
    return ""
