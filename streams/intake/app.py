"""Composition root of intake: builds its clients and its processor and runs them in the batch loop."""

from __future__ import annotations

from infra.kafka.batch_limits import BatchLimits
from infra.kafka.batches import run_batches
from infra.kafka.producer import Deliverer
from infra.kafka.topics import load_topics
from infra.postgres.pool import close, connect
from infra.runtime import Stop
from infra.settings import Settings
from schemas.codec import Codec
from schemas.writer_schemas import schema_fetch
from streams.intake.pipeline import Intake
from streams.intake.route import CRM_TOPICS, STAGE, Router
from streams.intake.store import Store

_RECORD_BYTES = 2000  # of an event and its records as Python objects, in addition to its size


async def main(settings: Settings, stop: Stop) -> None:
    """Run intake until ``stop``."""
    codec = Codec(fetch=schema_fetch(settings.schema_registry_url))
    crm_topics = [name for name in load_topics() if name.startswith(CRM_TOPICS)]
    deliverer = Deliverer(settings, STAGE, on_fatal=stop.fail)
    pool = await connect(settings.database_url, size=settings.database_pool_size, application=STAGE)
    intake = Intake(
        Store(
            pool,
            dedupe_days=settings.dedupe_days,
            max_bytes=settings.batch_bytes,
            suppression_key=settings.suppression_key.get_secret_value(),
        ),
        codec,
        Router(codec, crm_topics, part_bytes=settings.batch_bytes),
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
            limits=BatchLimits(
                settings.batch_size, settings.batch_bytes, settings.batch_linger_ms, record_bytes=_RECORD_BYTES
            ),
            deliverer=deliverer,
        )
    finally:
        await deliverer.close()
        await close(pool)
