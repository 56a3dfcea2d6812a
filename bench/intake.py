"""Intake compared with an ``INSERT … SELECT … ON CONFLICT`` of the same rows inside Postgres.

``ours``: the stage with as many workers as in ``infra/processes.toml`` (see ``intake_worker.py``). ``reference``:
Postgres copies the rows that intake wrote from other tables, on one connection, one transaction per batch.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
import uuid
import zlib
from pathlib import Path
from typing import Any

import asyncpg
import uvloop

from bench.events import payloads
from bench.intake_worker import batches_of, stage
from bench.result import Result, compare
from infra import processes
from infra.settings import child_environment

_COUNT = 60_000
_TABLES = {
    "identities": "(tenant, kind, value) DO NOTHING",
    "leads": "(lead_id) DO UPDATE SET version = excluded.version, attributes = excluded.attributes,"
    " provenance = excluded.provenance, updated_at = excluded.updated_at, email = excluded.email",
    "receipts": "(key, month) DO NOTHING",
    "lead_history": "(lead_id, version, month) DO NOTHING",
}
# The rows that a batch wrote: leads and history by their time, other rows because they are not copied yet.
_WRITTEN = {
    "identities": "SELECT t.* FROM identities t LEFT JOIN bench_identities b USING (tenant, kind, value)"
    " WHERE b.value IS NULL",
    "leads": "SELECT * FROM leads WHERE updated_at = $1",
    "receipts": "SELECT r.* FROM receipts r JOIN lead_history h USING (lead_id, version) WHERE h.decided_at = $1",
    "lead_history": "SELECT * FROM lead_history WHERE decided_at = $1",
}


def measure(dsn: str, home: Path, batch: int, runs: int) -> list[Result]:
    """Return the comparison, in events per second."""
    events = payloads(_COUNT, uuid.uuid4().hex[:12])
    workers = processes.load_processes()["intake"].replicas
    files = []
    for number in range(workers):  # as with partitions, all events of a key go to one worker
        file = home / f"intake-{number}.pickle"
        file.write_bytes(pickle.dumps([event for event in events if zlib.crc32(event[0]) % workers == number]))
        files.append(file)
    parts = uvloop.run(_copy(dsn, events, batch))
    return [
        compare(
            "intake / server-only INSERT … ON CONFLICT",
            lambda: _ours(dsn, files, batch),
            lambda: uvloop.run(_reference(dsn, parts)),
            wanted=0.6,
            runs=runs,
            note=f"{workers} workers",
        )
    ]


def _ours(dsn: str, files: list[Path], batch: int) -> float:
    uvloop.run(_empty(dsn))
    root = Path(__file__).parents[1]
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.intake_worker", dsn, str(file), str(batch)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
            env=child_environment({}, inherit=False),
        )
        for file in files
    ]
    _wait_for(workers, "ready")
    began = time.perf_counter()
    for worker in workers:
        worker.stdin.write("go\n")  # type: ignore[union-attr]
        worker.stdin.flush()  # type: ignore[union-attr]
    _wait_for(workers, "done")
    took = time.perf_counter() - began
    for worker in workers:
        worker.communicate()
    return _COUNT / took


def _wait_for(workers: list[subprocess.Popen[str]], line: str) -> None:
    for worker in workers:
        if worker.stdout.readline().strip() != line:  # type: ignore[union-attr]
            raise RuntimeError(f"a worker ended before it printed {line!r}")


async def _empty(dsn: str) -> None:
    connection: Any = await asyncpg.connect(dsn)
    await connection.execute(f"TRUNCATE {', '.join(_TABLES)}")
    await connection.close()


async def _copy(dsn: str, events: list[tuple[bytes, bytes]], batch: int) -> int:
    """Run intake once, and after each batch copy the rows that it wrote; return the number of batches."""
    await _empty(dsn)
    now = time.time_ns() // 1000
    pool, intake = await stage(dsn, lambda: now)
    for table in _TABLES:
        await pool.execute(f"CREATE UNLOGGED TABLE bench_{table} AS SELECT *, 0 AS part FROM {table} LIMIT 0")  # noqa: S608
    batches = batches_of(events, batch)
    for part, messages in enumerate(batches):
        now += 1_000_000  # each batch has its own time, by which its rows are found
        async for _ in intake.apply(intake.prepare(messages)):
            pass
        for table, written in _WRITTEN.items():
            arguments = [now] if "$1" in written else []
            await pool.execute(f"INSERT INTO bench_{table} SELECT t.*, {part} FROM ({written}) AS t", *arguments)  # noqa: S608
    for table in _TABLES:
        await pool.execute(f"CREATE INDEX ON bench_{table} (part)")
        await pool.execute(f"ANALYZE bench_{table}")
    await pool.close()
    return len(batches)


async def _reference(dsn: str, parts: int) -> float:
    await _empty(dsn)
    connection: Any = await asyncpg.connect(dsn)
    columns = {
        table: ", ".join(f'"{row["attname"]}"' for row in await connection.fetch(_COLUMNS, table)) for table in _TABLES
    }
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
