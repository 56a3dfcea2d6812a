"""Composition root of the daily job: builds its clients and runs it."""

from __future__ import annotations

from functools import partial

from infra.postgres.pool import close, connect
from infra.retry import Retry
from infra.runtime import Stop, log
from infra.settings import Settings
from operations.maintenance import STAGE, clean

_EVERY_S = 86_400.0


async def main(settings: Settings, stop: Stop) -> None:
    """Run the job at start and then once a day, until ``stop``."""
    pool = await connect(settings.database_url, size=1, application=STAGE)
    retry = Retry(STAGE, stop.status)
    try:
        while not stop.requested:
            deleted = await retry.until_available(partial(clean, pool, settings.dedupe_days))
            log(STAGE).info("cleaned", extra={"fields": dict(deleted)})
            await stop.wait(_EVERY_S)
    finally:
        await close(pool)
