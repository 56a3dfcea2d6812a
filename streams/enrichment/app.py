"""Composition root of the enrichment stage: builds its clients and its handler and runs them on Faust."""

from __future__ import annotations

import contextlib

from infra import http, plugins
from infra.kafka.producer import Deliverer
from infra.postgres.pool import close, connect
from infra.runtime import Stop, log
from infra.settings import Settings
from schemas.codec import Codec
from streams.enrichment.cache import PostgresResultCache
from streams.enrichment.enrich import STAGE, TOPIC, EnrichmentHandler
from streams.enrichment.providers import Provider
from streams.enrichment.waterfall import Waterfall
from streams.faust.agent import run_agent

MAX_INFLIGHT = 256  # enrichment requests that are processed at the same time


async def main(settings: Settings, stop: Stop) -> None:
    """Run enrichment until ``stop``. If no provider is configured, the outcome of every request is ``skipped``."""
    async with contextlib.AsyncExitStack() as opened:
        providers = await _providers(settings, opened)
        log(STAGE).info("providers", extra={"fields": {"enabled": [provider.name for provider in providers]}})
        pool = await connect(settings.database_url, size=settings.database_pool_size, application=STAGE)
        opened.push_async_callback(close, pool)
        deliverer = Deliverer(settings, STAGE, on_fatal=stop.fail)
        opened.push_async_callback(deliverer.close)
        handler = EnrichmentHandler(Waterfall(providers, PostgresResultCache(pool)), Codec())
        await run_agent(
            settings, stop, group=STAGE, topic=TOPIC, handler=handler, deliverer=deliverer, max_inflight=MAX_INFLIGHT
        )


async def _providers(settings: Settings, opened: contextlib.AsyncExitStack) -> list[Provider]:
    """Return the connected providers: those whose API key is set."""
    connected: list[Provider] = []
    for name, module in plugins.discover("streams.enrichment.providers").items():
        config = settings.section(f"provider_{name}", module.Config)
        if config.api_key.get_secret_value():
            client = http.client(config.base_url, timeout_s=config.timeout_s, connections=config.connections)
            await opened.enter_async_context(client)
            connected.append(module.connect(config, client))
    return connected
