"""Composition root of the enrichment stage: the handler of new requests on Faust, and the engine of open requests."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial

import asyncpg
import httpx

from infra import http, plugins
from infra.kafka.outcome_records import OutcomeRecords
from infra.kafka.producer import Deliverer
from infra.postgres.leased import LeasedWork, WorkLimits
from infra.postgres.leased_outcomes import OutcomeQueue
from infra.postgres.leased_pause import Pause
from infra.postgres.pool import close, connect
from infra.retry import Backoff, Retry
from infra.runtime import Stop, log, run_together
from infra.settings import Settings
from infra.tenant_files.last_valid import restore_last_valid
from infra.tenants import Tenants
from schemas.codec import Codec
from streams.enrichment import STAGE
from streams.enrichment.answers import EventRecords
from streams.enrichment.budget import BudgetedProvider
from streams.enrichment.cache import PostgresResultCache
from streams.enrichment.enrich import TOPIC, EnrichmentHandler
from streams.enrichment.erased import PostgresErasures
from streams.enrichment.parking import Parking
from streams.enrichment.providers import Provider, ProviderConfig
from streams.enrichment.tenant_waterfalls import OpenedWaterfall, ProviderAccounts, TenantWaterfalls, problem
from streams.enrichment.waterfall import Waterfall
from streams.enrichment.work import OpenRequests, WorkConfig, expire
from streams.enrichment.work_table import EnrichmentWorkTable
from streams.faust.agent import run_agent

MAX_INFLIGHT = 256  # enrichment requests that are processed at the same time
_OTHER_CONNECTIONS = 3  # of the Postgres pool, for open requests: the listener, the claim, the expiry
_PAUSE = Backoff(1.0, 30.0)  # of open requests, while Postgres or Kafka is unavailable
_STOP_SHARE = 0.8  # of shutdown_s, for the work in progress; the rest is for closing the clients


async def main(settings: Settings, stop: Stop) -> None:
    """Run enrichment until ``stop``. If no provider is configured, the outcome of every request is ``skipped``."""
    config = settings.section(STAGE, WorkConfig)
    async with contextlib.AsyncExitStack() as opened:
        tenants = Tenants.load(settings, partial(problem, settings=settings))
        shared = _shared(settings)
        log(STAGE).info("providers", extra={"fields": {"enabled": [name for name, _ in shared]}})
        size = settings.database_pool_size + _OTHER_CONNECTIONS
        pool = await connect(settings.database_url, size=size, application=STAGE)
        opened.push_async_callback(close, pool)
        deliverer = Deliverer(settings, STAGE, on_fatal=stop.fail)
        opened.push_async_callback(deliverer.close)
        await restore_last_valid(tenants, pool, stop)
        waterfalls = TenantWaterfalls(tenants, settings, shared, partial(_open, pool=pool))
        opened.push_async_callback(waterfalls.close)
        work = _run(settings, stop, config, waterfalls, pool, deliverer)
        await run_together(work, tenants.watch(stop, waterfalls.changed))


async def _run(
    settings: Settings,
    stop: Stop,
    config: WorkConfig,
    waterfall: TenantWaterfalls,
    pool: asyncpg.Pool,
    deliverer: Deliverer,
) -> None:
    codec, wake = Codec(), asyncio.Event()
    erasures = PostgresErasures(pool)
    table = EnrichmentWorkTable(pool, lease_s=config.lease_s, expire_us=config.expire_us)
    records = OutcomeRecords(STAGE, codec.encoder("outcome"))
    backoff = Backoff(config.backoff_s, config.backoff_max_s)
    work = LeasedWork(
        STAGE,
        table,
        OpenRequests(waterfall, EventRecords(codec), deliverer.deliver, erasures=erasures).handle,
        limits=WorkLimits(
            in_flight=config.in_flight,
            ahead=config.in_flight,
            poll_s=config.poll_s,
            stop_s=settings.shutdown_s * _STOP_SHARE,
        ),
        backoff=backoff,
        pause=Pause(STAGE, "open requests", _PAUSE),
        outcomes=OutcomeQueue(deliverer.deliver),
        records=records,
        wake=wake,
        ready=waterfall.ready,
        status=stop.status,
    )
    retry = Retry(STAGE, stop.status)
    requests = run_agent(
        settings,
        stop,
        group=STAGE,
        topic=TOPIC,
        handler=EnrichmentHandler(waterfall, codec, Parking(table, wake), backoff, erasures=erasures),
        deliverer=deliverer,
        max_inflight=MAX_INFLIGHT,
    )
    sweep = expire(table, records, deliverer.deliver, retry=retry, stop=stop, every_s=config.sweep_s)
    await run_together(work.run(stop), sweep, requests)


def _shared(settings: Settings) -> list[tuple[str, ProviderConfig]]:
    """Return the providers of the settings: those whose API key is set."""
    found: list[tuple[str, ProviderConfig]] = []
    for name, module in plugins.discover("streams.enrichment.providers").items():
        config = settings.section(f"provider_{name}", module.Config)
        if config.api_key.get_secret_value():
            found.append((name, config))
    return found


def _open(accounts: ProviderAccounts, pool: asyncpg.Pool) -> OpenedWaterfall:
    """Return the waterfall of ``accounts`` with clients of its own."""
    clients: list[httpx.AsyncClient] = []
    providers: list[Provider] = []
    for name, config in accounts.configs:
        client = http.client(config.base_url, timeout_s=config.timeout_s, connections=config.connections)
        clients.append(client)
        provider: Provider = plugins.find("streams.enrichment.providers", name).connect(config, client)
        if accounts.budget is not None:
            provider = BudgetedProvider(provider, pool, accounts.tenant, accounts.budget)
        providers.append(provider)

    async def close_all() -> None:
        for client in clients:
            await client.aclose()

    waterfall = Waterfall(providers, PostgresResultCache(pool), account=accounts.tenant)
    return OpenedWaterfall(accounts, waterfall, close_all)
