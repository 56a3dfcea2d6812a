"""Composition root of the campaigns stage: builds its clients and its handler and runs them on Faust."""

from __future__ import annotations

from infra.clock import now_us
from infra.kafka.producer import Deliverer
from infra.postgres.pool import close, connect
from infra.runtime import Stop, run_together
from infra.settings import Settings
from infra.tenant_files.last_valid import restore_last_valid
from infra.tenants import Tenants
from schemas.codec import Codec
from streams.campaigns.catalog import Catalog
from streams.campaigns.evaluate import STAGE, TOPIC, Evaluator
from streams.faust.agent import run_agent


async def main(settings: Settings, stop: Stop) -> None:
    """Run the campaigns of all tenants until ``stop``; changes of the files take effect at run time.

    Raises:
        SettingsError: a campaign file or a template is invalid at start. The message lists every problem.

    """
    tenants = Tenants.load(settings)
    deliverer = Deliverer(settings, STAGE, on_fatal=stop.fail)
    pool = await connect(settings.database_url, size=1, application=STAGE)
    try:
        await restore_last_valid(tenants, pool, stop)
        catalog = Catalog(settings.campaigns_dir, tenants)
        evaluator = Evaluator(catalog.of, Codec(), now_us)
        agent = run_agent(settings, stop, group=STAGE, topic=TOPIC, handler=evaluator, deliverer=deliverer)
        await run_together(tenants.watch(stop), catalog.follow_changes(pool, stop), agent)
    finally:
        await deliverer.close()
        await close(pool)
