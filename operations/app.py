"""Composition root of maintenance: the daily job, the topics of new tenants, the removal of erased leads."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import asyncpg

from infra.clickhouse.client import ClickHouse
from infra.kafka.outcome_records import OutcomeRecords
from infra.kafka.producer import Deliverer
from infra.postgres.leased import LeasedWork, WorkLimits
from infra.postgres.leased_outcomes import OutcomeQueue
from infra.postgres.leased_pause import Pause
from infra.postgres.pool import close, connect
from infra.retry import Backoff, Retry
from infra.runtime import Stop, log, run_together
from infra.settings import Settings
from operations.erasure_clickhouse import LEADS, ClickHouseErasure
from operations.erasure_table import ErasureRow, ErasuresTable, measure_open
from operations.erasure_work import WorkErasure
from operations.maintenance import STAGE, clean
from operations.tenant_topics import keep_topics
from schemas.codec import Codec

_EVERY_S = 86_400.0
_MEASURE_S = 60.0
_CONNECTIONS = 8  # of Postgres: the daily job; for each store a listener, a claim, a worker
_LEASE_S = 300.0  # longer than a mutation of a large table
_BACKOFF = Backoff(1.0, 300.0)
_PAUSE = Backoff(1.0, 30.0)
_STOP_SHARE = 0.8  # of shutdown_s, for the work in progress

_Handle = Callable[[Any], Awaitable[Any]]


async def main(settings: Settings, stop: Stop) -> None:
    """Run the daily job, create the topics of new tenants and remove erased leads, until ``stop``."""
    pool = await connect(settings.database_url, size=_CONNECTIONS, application=STAGE)
    deliverer = Deliverer(settings, STAGE, on_fatal=stop.fail)
    try:
        async with ClickHouse(settings.clickhouse_url) as server:
            followers = {
                "work": (WorkErasure(pool).handle, 1),
                "clickhouse": (ClickHouseErasure(pool, server).handle, LEADS),
            }
            works = [
                _follower(settings, stop, ErasuresTable(pool, store, lease_s=_LEASE_S), handle, size, deliverer)
                for store, (handle, size) in followers.items()
            ]
            await run_together(
                _daily(settings, stop, pool),
                keep_topics(settings, settings.tenants_dir, stop),
                _measure(stop, pool),
                *(work.run(stop) for work in works),
            )
    finally:
        await deliverer.close()
        await close(pool)


async def _daily(settings: Settings, stop: Stop, pool: asyncpg.Pool) -> None:
    retry = Retry(STAGE, stop.status)
    while not stop.requested:
        deleted = await retry.until_available(partial(clean, pool, settings.dedupe_days))
        log(STAGE).info("cleaned", extra={"fields": dict(deleted)})
        await stop.wait(_EVERY_S)


async def _measure(stop: Stop, pool: asyncpg.Pool) -> None:
    retry = Retry(STAGE, stop.status)
    while not stop.requested:
        await retry.until_available(partial(measure_open, pool))
        await stop.wait(_MEASURE_S)


def _follower(
    settings: Settings, stop: Stop, table: ErasuresTable, handle: _Handle, size: int, deliverer: Deliverer
) -> LeasedWork[ErasureRow]:
    return LeasedWork(
        STAGE,
        table,
        handle,
        limits=WorkLimits(in_flight=1, batch_max=size, stop_s=settings.shutdown_s * _STOP_SHARE),
        backoff=_BACKOFF,
        pause=Pause(STAGE, "erasures", _PAUSE),
        outcomes=OutcomeQueue(deliverer.deliver),
        records=OutcomeRecords(STAGE, Codec().encoder("outcome")),
        wake=asyncio.Event(),
        status=stop.status,
    )
