"""Intake against a server-only ``INSERT … SELECT … ON CONFLICT`` of the same rows.

``ours`` is the whole stage in one process: records in memory are decoded, validated, decided in one transaction a batch
and encoded for everybody who has to know. ``reference`` is Postgres alone: the rows that this left behind, copied
aside, written again by one connection, a transaction for each batch's share of rows.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

import asyncpg
from confluent_kafka import Message

from bench.events import payloads
from bench.result import Result, compare
from infra.postgres.pool import connect
from schemas.codec import Codec
from streams.intake.pipeline import Intake
from streams.intake.route import Router

_COUNT = 60_000
_TABLES = {
    "identities": "(tenant, kind, value) DO NOTHING",
    "leads": "(lead_id) DO UPDATE SET version = excluded.version, attributes = excluded.attributes,"
    " provenance = excluded.provenance, updated_at = excluded.updated_at, email = excluded.email",
    "receipts": "(key, month) DO NOTHING",
    "lead_history": "(lead_id, version, month) DO NOTHING",
}


def measure(dsn: str, batch: int, runs: int) -> list[Result]:
    """Return the comparison, events a second."""
    return [
        compare(
            "intake / server-only INSERT … ON CONFLICT",
            lambda: asyncio.run(_ours(dsn, batch)),
            lambda: asyncio.run(_reference(dsn, batch)),
            wanted=0.6,
            runs=runs,
        )
    ]


async def _ours(dsn: str, batch: int) -> float:
    events = payloads(_COUNT, uuid.uuid4().hex[:12])
    messages = [
        Message("leads.received", 0, n, key, value, None, None, (1, time.time_ns() // 1_000_000))
        for n, (key, value) in enumerate(events)
    ]
    codec = Codec()
    pool = await connect(dsn, size=1, application="bench")
    await pool.execute(f"TRUNCATE {', '.join(_TABLES)}")
    router = Router(codec, ["leads.crm-hubspot"], frozenset({"form_submitted"}))
    intake = Intake(pool, codec, router, max_event_bytes=262_144, max_ahead_s=86_400)
    began = time.perf_counter()
    for start in range(0, _COUNT, batch):
        await intake.apply(intake.prepare(messages[start : start + batch]))
    took = time.perf_counter() - began
    await pool.close()
    return _COUNT / took


async def _reference(dsn: str, batch: int) -> float:
    connection: Any = await asyncpg.connect(dsn)
    parts = _COUNT // batch
    for table in _TABLES:
        await connection.execute(f"DROP TABLE IF EXISTS bench_{table}")
        await connection.execute(
            f"CREATE UNLOGGED TABLE bench_{table} AS SELECT *, ntile({parts}) OVER () AS part FROM {table}"  # noqa: S608
        )
        await connection.execute(f"CREATE INDEX ON bench_{table} (part)")
        await connection.execute(f"ANALYZE bench_{table}")
    columns = {
        table: ", ".join(f'"{row["attname"]}"' for row in await connection.fetch(_COLUMNS, table)) for table in _TABLES
    }
    await connection.execute(f"TRUNCATE {', '.join(_TABLES)}")
    began = time.perf_counter()
    for part in range(1, parts + 1):
        async with connection.transaction():
            for table, conflict in _TABLES.items():
                names = columns[table]
                await connection.execute(
                    f"INSERT INTO {table} ({names}) SELECT {names} FROM bench_{table} WHERE part = {part}"  # noqa: S608
                    f" ON CONFLICT {conflict}"
                )
    took = time.perf_counter() - began
    await connection.close()
    return _COUNT / took


_COLUMNS = """
SELECT attname FROM pg_attribute WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""
