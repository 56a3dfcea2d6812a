"""Intake against a server-only ``INSERT … SELECT … ON CONFLICT`` of the same rows.

``ours`` is the whole stage in one process: records in memory are decoded, validated, decided in one transaction a batch
and encoded for everybody who has to know; preparing, deciding and telling overlap as they do in the batch loop.
``reference`` is Postgres alone, on one connection: each row that intake wrote, batch by batch and a transaction each,
is written again from a copy of it.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from typing import Any

import asyncpg
import uvloop
from confluent_kafka import Message

from bench.events import payloads
from bench.result import Result, compare
from infra.kafka.processor import Effects
from infra.postgres.pool import connect
from schemas.codec import Codec
from streams.intake.pipeline import Intake, Prepared
from streams.intake.route import Router
from streams.intake.store import speak_microseconds

_COUNT = 60_000
_TABLES = {
    "identities": "(tenant, kind, value) DO NOTHING",
    "leads": "(lead_id) DO UPDATE SET version = excluded.version, attributes = excluded.attributes,"
    " provenance = excluded.provenance, updated_at = excluded.updated_at, email = excluded.email",
    "receipts": "(key, month) DO NOTHING",
    "lead_history": "(lead_id, version, month) DO NOTHING",
}
# What a batch wrote: its leads and its history by their time, the rest by what is not copied yet.
_WRITTEN = {
    "identities": "SELECT t.* FROM identities t LEFT JOIN bench_identities b USING (tenant, kind, value)"
    " WHERE b.value IS NULL",
    "leads": "SELECT * FROM leads WHERE updated_at = $1",
    "receipts": "SELECT r.* FROM receipts r JOIN lead_history h USING (lead_id, version) WHERE h.decided_at = $1",
    "lead_history": "SELECT * FROM lead_history WHERE decided_at = $1",
}


def measure(dsn: str, batch: int, runs: int) -> list[Result]:
    """Return the comparison, events a second."""
    events = payloads(_COUNT, uuid.uuid4().hex[:12])
    messages = [
        Message("leads.received", 0, n, key, value, None, None, (1, time.time_ns() // 1_000_000))
        for n, (key, value) in enumerate(events)
    ]
    batches = [messages[start : start + batch] for start in range(0, _COUNT, batch)]
    uvloop.run(_copy(dsn, batches))
    return [
        compare(
            "intake / server-only INSERT … ON CONFLICT",
            lambda: uvloop.run(_ours(dsn, batches)),
            lambda: uvloop.run(_reference(dsn, len(batches))),
            wanted=0.6,
            runs=runs,
        )
    ]


class _Clock:
    """A clock that each batch moves on by a second."""

    def __init__(self) -> None:
        self.now = time.time_ns() // 1000

    def __call__(self) -> int:
        return self.now


async def _stage(dsn: str, clock: Any) -> tuple[asyncpg.Pool, Intake]:
    pool = await connect(dsn, size=1, application="bench", init=speak_microseconds)
    await pool.execute(f"TRUNCATE {', '.join(_TABLES)}")
    router = Router(Codec(), ["leads.crm-hubspot"], frozenset({"form_submitted"}))
    return pool, Intake(pool, Codec(), router, max_event_bytes=262_144, max_ahead_s=86_400, now=clock)


async def _ours(dsn: str, batches: Sequence[Sequence[Message]]) -> float:
    pool, intake = await _stage(dsn, lambda: time.time_ns() // 1000)
    prepared: asyncio.Queue[Prepared | None] = asyncio.Queue(1)
    applied: asyncio.Queue[Effects | None] = asyncio.Queue(1)

    async def prepare() -> None:
        for messages in batches:
            await prepared.put(intake.prepare(messages))
        await prepared.put(None)

    async def apply() -> None:
        while (batch := await prepared.get()) is not None:
            await applied.put(await intake.apply(batch))
        await applied.put(None)

    async def tell() -> None:
        while (effects := await applied.get()) is not None:
            effects.to_deliver()

    began = time.perf_counter()
    await asyncio.gather(prepare(), apply(), tell())
    took = time.perf_counter() - began
    await pool.close()
    return _COUNT / took


async def _copy(dsn: str, batches: Sequence[Sequence[Message]]) -> None:
    """Run intake once, and after each batch copy the rows that it wrote aside."""
    clock = _Clock()
    pool, intake = await _stage(dsn, clock)
    for table in _TABLES:
        await pool.execute(f"CREATE UNLOGGED TABLE bench_{table} AS SELECT *, 0 AS part FROM {table} LIMIT 0")  # noqa: S608
    for part, messages in enumerate(batches):
        clock.now += 1_000_000
        await intake.apply(intake.prepare(messages))
        for table, written in _WRITTEN.items():
            words = [clock.now] if "$1" in written else []
            await pool.execute(f"INSERT INTO bench_{table} SELECT t.*, {part} FROM ({written}) AS t", *words)  # noqa: S608
    for table in _TABLES:
        await pool.execute(f"CREATE INDEX ON bench_{table} (part)")
        await pool.execute(f"ANALYZE bench_{table}")
    await pool.close()


async def _reference(dsn: str, parts: int) -> float:
    connection: Any = await asyncpg.connect(dsn)
    columns = {
        table: ", ".join(f'"{row["attname"]}"' for row in await connection.fetch(_COLUMNS, table)) for table in _TABLES
    }
    await connection.execute(f"TRUNCATE {', '.join(_TABLES)}")
    began = time.perf_counter()
    for part in range(parts):
        async with connection.transaction():
            for table, conflict in _TABLES.items():
                names = columns[table]
                await connection.execute(
                    f"INSERT INTO {table} ({names}) SELECT {names} FROM bench_{table} WHERE part = {part}"  # noqa: S608
                    f" ON CONFLICT {conflict}"
                )
    took = time.perf_counter() - began
    if await connection.fetchval("SELECT count(*) FROM lead_history") != _COUNT:
        raise RuntimeError("the reference did not write all rows")
    await connection.close()
    return _COUNT / took


_COLUMNS = """
SELECT attname FROM pg_attribute WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""
