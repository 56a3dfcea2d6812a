"""Throughput and latency of the whole pipeline, with all processes running.

``ours`` is events a second until the last event is in Postgres and in ClickHouse (both are polled for what is visible);
``reference`` is the rate wanted on two cores. The paced run begins when what that left behind is done, and sends 1,000
events a second for 20 s: an event is visible in Postgres from the time of the commit that wrote it,
ClickHouse is polled. ``ours`` and ``reference`` are then milliseconds, and ``ratio`` is wanted / measured.
"""

from __future__ import annotations

import asyncio
import statistics
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg

from bench.events import fill, payloads
from bench.result import Result
from infra.clickhouse.client import ClickHouse
from infra.kafka.producer import Deliverer, Output
from infra.kafka_settings import KafkaSettings
from operations.lag import LagReader
from schemas.codec import Codec

_COUNT = 60_000
_WARM_UP = 20_000
_WANTED_RATE = 10_000
_PACED_RATE = 1_000
_PACED_S = 20
_SLICE = 20
_POLL_S = 0.1  # minimum time between two polls of a store, because a poll takes time of it
_LIMITS_MS = {"postgres": 250.0, "clickhouse": 1500.0}

Count = Callable[[], Awaitable[int]]


def measure(state: dict[str, Any], runs: int) -> list[Result]:
    """Return the throughput in events per second, and the latencies at a constant rate."""
    found = []
    asyncio.run(_rate(state, _WARM_UP))
    for store, waits in asyncio.run(_paced(state)).items():
        p50, p99 = (round(waits[int(q * (len(waits) - 1))], 1) for q in (0.5, 0.99))
        limit = _LIMITS_MS[store]
        note = f"p50 {p50} ms at {_PACED_RATE} events/s"
        found.append(
            Result(f"produce → visible in {store}, p99", p99, limit, round(limit / p99, 3), "ms", 1, 1.0, note)
        )
    rate = statistics.median(asyncio.run(_rate(state, _COUNT)) for _ in range(runs))
    found.append(
        Result("end to end, every process", rate, _WANTED_RATE, round(rate / _WANTED_RATE, 3), "events/s", runs, 1.0)
    )
    return found


async def _rate(state: dict[str, Any], count: int) -> float:
    tenant = uuid.uuid4().hex[:12]
    events = payloads(count, tenant)
    tenants = f"{tenant}%"
    async with ClickHouse(state["clickhouse"]["url"]) as server:
        pool = await asyncpg.create_pool(state["postgres"]["dsn"], min_size=1, max_size=1)
        began = time.perf_counter()
        await asyncio.to_thread(fill, _kafka(state), "leads.received", events)
        # An event reaches ClickHouse after Postgres, whose count takes longer the longer its history is.
        await _until(count, lambda: _in_clickhouse(server, tenants))
        await _until(count, lambda: _in_postgres(pool, tenants))
        took = time.perf_counter() - began
        await pool.close()
    return round(count / took, 1)


async def _paced(state: dict[str, Any]) -> dict[str, list[float]]:
    tenant = uuid.uuid4().hex[:12]
    total = _PACED_RATE * _PACED_S
    events = payloads(total, tenant)
    ids = [_id(value) for _, value in events]
    await _wait_until_idle(_kafka(state))
    sent: list[float] = []
    deliverer = Deliverer(_kafka(state), "bench")
    pool = await asyncpg.create_pool(state["postgres"]["dsn"], min_size=1, max_size=1)
    async with ClickHouse(state["clickhouse"]["url"]) as server:

        async def sending() -> None:
            began = time.time()
            for start in range(0, total, _SLICE):
                batch = events[start : start + _SLICE]
                sent.extend([time.time()] * len(batch))
                await deliverer.deliver([Output("leads.received", key, value) for key, value in batch])
                await asyncio.sleep(max(0.0, (start + _SLICE) / _PACED_RATE - (time.time() - began)))

        feed = asyncio.ensure_future(sending())
        clickhouse = await _waits(total, sent, lambda: _in_clickhouse(server, f"{tenant}%"))
        await feed
        seen = dict(await pool.fetch(_COMMITTED, f"{tenant}%"))
    await deliverer.close()
    await pool.close()
    postgres = sorted((seen[id_] - at) * 1000 for id_, at in zip(ids, sent, strict=True))
    return {"postgres": postgres, "clickhouse": clickhouse}


_COMMITTED = """
SELECT tenant || event_id, extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8 FROM lead_history
WHERE tenant LIKE $1
"""


def _id(value: bytes) -> str:
    envelope = Codec().decode(value).record["envelope"]
    return f"{envelope['tenant']}{envelope['event_id']}"


async def _wait_until_idle(settings: KafkaSettings) -> None:
    """Wait until no consumer group of the pipeline has lag."""
    reader = LagReader(settings)
    while any(row.lag for row in await asyncio.to_thread(reader.read)):  # noqa: ASYNC110 - no notification exists
        await asyncio.sleep(1)
    reader.close()


def _kafka(state: dict[str, Any]) -> KafkaSettings:
    return KafkaSettings(kafka_bootstrap=state["kafka"]["bootstrap"])


async def _waits(total: int, sent: list[float], count: Count) -> list[float]:
    """Return the latencies in ms: the n-th event to become visible is compared with the n-th that was sent."""
    waits: list[float] = []
    while len(waits) < total:
        there = await count()
        now = time.time()
        waits += [(now - sent[n]) * 1000 for n in range(len(waits), there)]
        await asyncio.sleep(_POLL_S)
    return sorted(waits)


async def _until(wanted: int, count: Count) -> None:
    """Wait until ``count`` returns ``wanted``; poll after half of the estimated remaining time."""
    began = time.perf_counter()
    while (there := await count()) < wanted:
        left = (time.perf_counter() - began) * (wanted - there) / max(there, 1)
        await asyncio.sleep(min(max(left / 2, _POLL_S), 1.0))


async def _in_postgres(pool: asyncpg.Pool, tenants: str) -> int:
    return int(
        await pool.fetchval(
            "SELECT count(*) FROM lead_history WHERE tenant LIKE $1 AND source NOT LIKE 'leadstream:%'", tenants
        )
    )


async def _in_clickhouse(server: ClickHouse, tenants: str) -> int:
    statement = "SELECT count() AS n FROM lead_events_store WHERE tenant LIKE {t:String} AND NOT own"
    return int((await server.query(statement, t=tenants))[0]["n"])
