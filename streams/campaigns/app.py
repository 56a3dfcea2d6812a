"""Composition root of the campaigns stage: builds its clients and its handler and runs them on Faust."""

from __future__ import annotations

import asyncio

from infra.clock import now_us
from infra.kafka.producer import Deliverer
from infra.postgres import pool as postgres
from infra.runtime import Stop
from infra.settings import Settings
from schemas.codec import Codec
from streams.campaigns.catalog import Catalog
from streams.campaigns.evaluate import STAGE, TOPIC, Evaluator
from streams.faust.agent import run_agent


async def main(settings: Settings, stop: Stop) -> None:
    """Run the campaigns of ``settings.campaigns_dir`` until ``stop``; changes of the files take effect at run time.

    Raises:
        SettingsError: a campaign file or a template is invalid at start. The message lists every problem.

    """
    catalog = Catalog(settings.campaigns_dir)
    evaluator = Evaluator(lambda: catalog.current, Codec(), now_us)
    deliverer = Deliverer(settings, STAGE, on_fatal=stop.fail)
    pool = await postgres.connect(settings.database_url, size=1, application=STAGE)
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(catalog.follow_changes(pool, stop))
            tasks.create_task(
                run_agent(settings, stop, group=STAGE, topic=TOPIC, handler=evaluator, deliverer=deliverer)
            )
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None  # the first failure; it cancelled the other task
    finally:
        await deliverer.close()
        await postgres.close(pool)
