"""Composition root of maintenance: the daily job, and the topics of new tenants."""

from __future__ import annotations

from functools import partial

import asyncpg

from infra.postgres.pool import close, connect
from infra.retry import Retry
from infra.runtime import Stop, log, run_together
from infra.settings import Settings
from operations.maintenance import STAGE, clean
from operations.tenant_topics import keep_topics

_EVERY_S = 86_400.0


async def main(settings: Settings, stop: Stop) -> None:
    """Run the job at start and then once a day, and create the topics of new tenants, until ``stop``."""
    pool = await connect(settings.database_url, size=1, application=STAGE)
    try:
        await run_together(_clean_daily(settings, pool, stop), keep_topics(settings, settings.tenants_dir, stop))
    finally:
        await close(pool)


async def _clean_daily(settings: Settings, pool: asyncpg.Pool, stop: Stop) -> None:
    retry = Retry(STAGE, stop.status)
    while not stop.requested:
        deleted = await retry.until_available(partial(clean, pool, settings.dedupe_days))
        log(STAGE).info("cleaned", extra={"fields": dict(deleted)})
        await stop.wait(_EVERY_S)
