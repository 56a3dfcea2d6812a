"""SIGKILL at random moments: nothing lost, nothing doubled, history without a gap."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from cli.demo.people import People
from infra.clickhouse.client import ClickHouse
from infra.clock import now_us
from infra.kafka.producer import Deliverer, Output
from infra.settings import child_environment
from tests.conftest import Stack, eventually

_INTAKE = ["streams.intake"]
WORKERS = {"intake": _INTAKE, "sink-clickhouse": ["sinks", "clickhouse"], "intake-2": _INTAKE}


class Worker:
    """One worker process that can be killed and comes back at once."""

    def __init__(self, name: str, stack: Stack, logs: Path) -> None:
        self._command = [sys.executable, "-m", *WORKERS[name]]
        # Small batches, so that there are many moments between a commit and a delivery to be killed in.
        environment = stack.environment(
            LEADSTREAM_INSTANCE=name, LEADSTREAM_BATCH_SIZE="200", LEADSTREAM_SINK_BATCH_LINGER_MS="50"
        )
        self._environment = child_environment(environment)
        self._log = (logs / f"{name}.log").open("ab")
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command, stdout=self._log, stderr=self._log, env=self._environment)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process = self._start()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=40)
        self._log.close()


async def pace(seconds: float) -> None:
    """Let time pass: here it is what the test is about, kills and events are spread over it."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), seconds)


@contextlib.asynccontextmanager
async def workers(stack: Stack, logs: Path) -> AsyncIterator[dict[str, Worker]]:
    started = {name: Worker(name, stack, logs) for name in WORKERS}
    try:
        yield started
    finally:
        for worker in started.values():
            worker.stop()


@pytest.mark.chaos
@pytest.mark.integration
@pytest.mark.timeout(900)
async def test_nothing_is_lost_or_doubled_when_intake_and_the_sink_are_killed(
    lone_stack: Stack, tmp_path: Path, unique: str, rng: random.Random, request: pytest.FixtureRequest
) -> None:
    stack = lone_stack
    full = request.config.getoption("--chaos") == "full"
    count, kills = (20_000, 24) if full else (6_000, 8)
    events = [e for e in People(unique, count, rng.randrange(1 << 30), now_us()) if e.form != "broken"]
    expected = {e.event_id for e in events}
    duplicates = sum(e.duplicate for e in events)
    deliverer = Deliverer(stack.settings, "test")
    pool = await asyncpg.create_pool(stack.dsn, min_size=1, max_size=2)
    pause_s = 1.5
    try:
        async with workers(stack, tmp_path) as running, ClickHouse(stack.clickhouse_url) as server:

            async def sending() -> None:
                size = max(1, len(events) // (kills * 8))
                for start in range(0, len(events), size):
                    batch = events[start : start + size]
                    await deliverer.deliver([Output("leads.received", e.key, e.value) for e in batch])
                    await pace(pause_s / 8)

            feed = asyncio.ensure_future(sending())
            for number in range(kills):
                await pace(pause_s * rng.uniform(0.5, 1.5))
                running[list(WORKERS)[number % len(WORKERS)]].kill()
            await feed

            async def accepted() -> bool:
                row = await pool.fetchval("SELECT count(*) FROM lead_history WHERE tenant = $1", unique)
                return bool(row == len(expected))

            async def told() -> bool:
                rows = await server.query(
                    "SELECT (SELECT count() FROM lead_events WHERE tenant = {t:String}) AS events,"
                    " (SELECT count() FROM outcomes WHERE tenant = {t:String} AND what = 'duplicate') AS duplicates",
                    t=unique,
                )
                return rows[0] == {"events": len(expected), "duplicates": duplicates}

            await eventually(accepted, 180)
            await eventually(told, 180)
            in_clickhouse = await server.query(
                "SELECT event_id, toString(original_lead_id) AS lead, version FROM lead_events"
                " WHERE tenant = {t:String}",
                t=unique,
            )
        in_postgres = await pool.fetch(
            "SELECT event_id, lead_id::text AS lead, version FROM lead_history WHERE tenant = $1", unique
        )
        gaps = await pool.fetch(
            """
            SELECT lead_id FROM leads l WHERE tenant = $1 AND merged_into IS NULL
              AND (SELECT count(*) FROM lead_history h WHERE h.lead_id = l.lead_id) <> version
            """,
            unique,
        )
    finally:
        await deliverer.close()
        await pool.close()

    assert {row["event_id"] for row in in_postgres} == expected
    assert len(in_postgres) == len(expected)
    key = ("event_id", "lead", "version")
    assert {tuple(r[k] for k in key) for r in in_clickhouse} == {tuple(r[k] for k in key) for r in in_postgres}
    assert len(in_clickhouse) == len(expected)
    assert gaps == []
