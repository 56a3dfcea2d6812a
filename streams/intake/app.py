"""Composition root of intake: builds its clients and its processor and runs them in the batch loop."""

from __future__ import annotations

from functools import partial

from infra.kafka.batch_limits import BatchLimits
from infra.kafka.batches import run_batches
from infra.kafka.producer import Deliverer
from infra.kafka.received import EVERY_TENANTS, SHARED
from infra.kafka.topics import load_topics
from infra.postgres.pool import close, connect
from infra.runtime import Stop, run_together
from infra.settings import Settings
from infra.tenant_files.last_valid import keep_valid, restore_last_valid
from infra.tenants import Tenants
from schemas.codec import Codec
from schemas.writer_schemas import schema_fetch
from streams.intake.identity_policy import TenantPolicies
from streams.intake.pipeline import Intake
from streams.intake.route import CRM_TOPICS, STAGE, Router
from streams.intake.store import Store

_NEW_TOPICS_MS = 3_000  # how soon the topic of a new tenant is found
_RECORD_BYTES = 2000  # of an event and its records as Python objects, in addition to its size


async def main(settings: Settings, stop: Stop) -> None:
    """Run intake until ``stop``."""
    tenants = Tenants.load(settings)
    policies = TenantPolicies(tenants)
    codec = Codec(fetch=schema_fetch(settings.schema_registry_url))
    crm_topics = [name for name in load_topics() if name.startswith(CRM_TOPICS)]
    deliverer = Deliverer(settings, STAGE, on_fatal=stop.fail)
    pool = await connect(settings.database_url, size=settings.database_pool_size, application=STAGE)
    intake = Intake(
        Store(
            pool,
            dedupe_days=settings.dedupe_days,
            max_bytes=settings.batch_bytes,
            policies=policies,
            suppression_key=settings.suppression_key.get_secret_value(),
        ),
        codec,
        Router(codec, crm_topics, part_bytes=settings.batch_bytes),
        max_event_bytes=settings.max_event_bytes,
        max_ahead_s=settings.max_clock_ahead_s,
        policies=policies,
        tenants=tenants,
    )
    try:
        await restore_last_valid(tenants, pool, stop)
        keep = partial(keep_valid, tenants, pool, stop)
        batches = run_batches(
            settings,
            group=STAGE,
            topics=[SHARED, EVERY_TENANTS],
            processor=intake,
            stop=stop,
            limits=BatchLimits(
                settings.batch_size, settings.batch_bytes, settings.batch_linger_ms, record_bytes=_RECORD_BYTES
            ),
            deliverer=deliverer,
            config={"topic.metadata.refresh.interval.ms": _NEW_TOPICS_MS},
        )
        await run_together(batches, keep(), tenants.watch(stop, keep))
    finally:
        await deliverer.close()
        await close(pool)
