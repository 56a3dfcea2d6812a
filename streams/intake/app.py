"""Intake's composition root: settings to clients to the batch loop."""

from __future__ import annotations

from infra.kafka.batches import run_batches
from infra.kafka.producer import Deliverer
from infra.kafka.topics import load_topics
from infra.postgres import pool as postgres
from infra.runtime import Stop
from infra.settings import Settings
from schemas.codec import Codec
from schemas.writer_schemas import schema_fetch
from streams.intake.pipeline import Intake
from streams.intake.route import CRM_TOPICS, STAGE, Router
from streams.intake.store import Store


async def main(settings: Settings, stop: Stop) -> None:
    """Run intake until ``stop``."""
    codec = Codec(fetch=schema_fetch(settings.schema_registry_url))
    crm_topics = [name for name in load_topics() if name.startswith(CRM_TOPICS)]
    deliverer = Deliverer(settings, STAGE, on_fatal=stop.fail)
    pool = await postgres.connect(settings.database_url, size=settings.database_pool_size, application=STAGE)
    intake = Intake(
        Store(pool),
        codec,
        Router(codec, crm_topics),
        max_event_bytes=settings.max_event_bytes,
        max_ahead_s=settings.max_clock_ahead_s,
    )
    try:
        await run_batches(
            settings,
            group=STAGE,
            topics=["leads.received"],
            processor=intake,
            stop=stop,
            size=settings.batch_size,
            linger_ms=settings.batch_linger_ms,
            deliverer=deliverer,
        )
    finally:
        await deliverer.close()
        await postgres.close(pool)
