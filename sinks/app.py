"""Composition root of the sinks: each function builds the clients of one sink and runs it until ``stop``."""

from __future__ import annotations

import asyncio
from types import ModuleType

import asyncpg

from infra import http, plugins
from infra.clickhouse.client import ClickHouse
from infra.kafka.batch_limits import BatchLimits
from infra.kafka.batches import run_batches
from infra.kafka.outcome_records import OutcomeRecords
from infra.kafka.producer import Deliverer
from infra.postgres.leased import LeasedWork, WorkLimits
from infra.postgres.leased_outcomes import OutcomeQueue
from infra.postgres.leased_pause import Pause
from infra.postgres.pool import close, connect
from infra.retry import Backoff
from infra.runtime import Stop, log, run_together
from infra.settings import Settings, SettingsError
from schemas.codec import Codec
from sinks.clickhouse import STAGE, TOPICS, ClickHouseSink
from sinks.crm import Connector, SyncConfig
from sinks.crm.reconciler import Reconciler
from sinks.crm.sync_requests import SyncRequests
from sinks.crm.sync_table import CrmSyncTable
from sinks.messages import Channel, DeliveryConfig, message_requests
from sinks.messages.delivery import MessageDelivery
from sinks.messages.message_requests import MessageRequests
from sinks.messages.messages_table import MessagesTable

# A sink consumes records in large batches. Larger fetches halve the number of requests to the broker.
_FETCH = {"fetch.min.bytes": 65_536, "fetch.wait.max.ms": 200}
_OTHER_CONNECTIONS = 3  # of the Postgres pool, in addition to one per call: for the consumer, the listener, the claim
_CRM_PAUSE_MAX_S = 5.0
_CHANNEL_PAUSE_MAX_S = 30.0
_AHEAD = 7  # messages claimed ahead per connection: one claim serves many messages, and no connection waits for one
_STOP_SHARE = 0.8  # of shutdown_s, for the work in progress; the rest is for closing the clients


async def crm(settings: Settings, stop: Stop, name: str) -> None:
    """Sync leads to the CRM ``name``.

    Raises:
        SettingsError: there is no such CRM, or its settings (``LEADSTREAM_CRM_<NAME>_*``) are invalid.

    """
    module = _connector("sinks.crm", name)
    config: SyncConfig = settings.section(f"crm_{name}", module.Config)
    pool = await connect(settings.database_url, size=config.in_flight + _OTHER_CONNECTIONS, application=f"crm-{name}")
    deliverer = Deliverer(settings, f"crm-{name}", on_fatal=stop.fail)
    client = http.client(config.base_url, timeout_s=config.timeout_s, connections=config.in_flight * 2)
    try:
        await _sync(settings, stop, name, config, module.connect(config, client), pool, deliverer)
    finally:
        await client.aclose()
        await deliverer.close()
        await close(pool)


async def clickhouse(settings: Settings, stop: Stop) -> None:
    """Insert lead changes, outcomes and dead letters into ClickHouse."""
    deliverer = Deliverer(settings, STAGE, on_fatal=stop.fail)
    try:
        async with ClickHouse(settings.clickhouse_url) as server:
            await run_batches(
                settings,
                group=STAGE,
                topics=TOPICS,
                processor=ClickHouseSink(server, Codec()),
                stop=stop,
                limits=BatchLimits(settings.sink_batch_size, settings.batch_bytes, settings.sink_batch_linger_ms),
                deliverer=deliverer,
                config=_FETCH,
            )
    finally:
        await deliverer.close()


async def messages(settings: Settings, stop: Stop, name: str) -> None:
    """Send the requested messages of the channel ``name``.

    Raises:
        SettingsError: there is no such channel, or its settings (``LEADSTREAM_CHANNEL_<NAME>_*``) are invalid.

    """
    module = _connector("sinks.messages", name)
    config: DeliveryConfig = settings.section(f"channel_{name}", module.Config)
    pool = await connect(
        settings.database_url, size=config.max_connections + _OTHER_CONNECTIONS, application=f"messages-{name}"
    )
    deliverer = Deliverer(settings, f"messages-{name}", on_fatal=stop.fail)
    channel: Channel = module.connect(config)
    try:
        await _deliver(settings, stop, name, config, channel, pool, deliverer)
    finally:
        await channel.close()
        await deliverer.close()
        await close(pool)


async def _sync(
    settings: Settings,
    stop: Stop,
    name: str,
    config: SyncConfig,
    connector: Connector,
    pool: asyncpg.Pool,
    deliverer: Deliverer,
) -> None:
    stage, codec, wake = f"crm-{name}", Codec(), asyncio.Event()
    table = CrmSyncTable(pool, name, lease_s=config.lease_s)
    pause = Pause(stage, name, Backoff(config.backoff_s, _CRM_PAUSE_MAX_S))
    work = LeasedWork(
        stage,
        table,
        Reconciler(table, connector, pause, stage, max_bytes=settings.batch_bytes // config.in_flight).handle,
        limits=WorkLimits(
            in_flight=config.in_flight,
            batch_max=connector.batch_max,
            poll_s=config.poll_s,
            stop_s=settings.shutdown_s * _STOP_SHARE,
        ),
        backoff=Backoff(config.backoff_s, config.backoff_max_s),
        pause=pause,
        outcomes=OutcomeQueue(deliverer.deliver),
        records=OutcomeRecords(stage, codec.encoder("outcome")),
        wake=wake,
        ready=connector.ready,
        status=stop.status,
    )
    for problem in await connector.test():
        log(stage).warning("CRM set-up problem", extra={"fields": {"crm": name, "detail": problem}})
    requests = run_batches(
        settings,
        group=stage,
        topics=[f"leads.crm-{name}"],
        processor=SyncRequests(table, codec, stage, wake),
        stop=stop,
        limits=BatchLimits(settings.batch_size, settings.batch_bytes, settings.batch_linger_ms),
        deliverer=deliverer,
        config=_FETCH,
    )
    await run_together(work.run(stop), requests)


async def _deliver(
    settings: Settings,
    stop: Stop,
    name: str,
    config: DeliveryConfig,
    channel: Channel,
    pool: asyncpg.Pool,
    deliverer: Deliverer,
) -> None:
    stage, codec, wake = f"messages-{name}", Codec(), asyncio.Event()
    table = MessagesTable(pool, name, lease_s=config.lease_s)
    pause = Pause(stage, name, Backoff(config.backoff_s, _CHANNEL_PAUSE_MAX_S))
    records = OutcomeRecords(stage, codec.encoder("outcome"))
    work = LeasedWork(
        stage,
        table,
        MessageDelivery(table, channel, config, pause=pause, codec=codec, stage=stage).handle,
        limits=WorkLimits(
            in_flight=config.max_connections,
            ahead=_AHEAD * config.max_connections,
            poll_s=config.poll_s,
            stop_s=settings.shutdown_s * _STOP_SHARE,
        ),
        backoff=Backoff(config.backoff_s, config.backoff_max_s),
        pause=pause,
        outcomes=OutcomeQueue(deliverer.deliver),
        records=records,
        wake=wake,
        status=stop.status,
    )
    requests = run_batches(
        settings,
        group=stage,
        topics=[message_requests.TOPIC],
        processor=MessageRequests(
            table, codec, records, channel=name, stage=stage, wake=wake, channels=[*plugins.discover("sinks.messages")]
        ),
        stop=stop,
        limits=BatchLimits(settings.batch_size, settings.batch_bytes, settings.batch_linger_ms),
        deliverer=deliverer,
    )
    await run_together(work.run(stop), requests)


def _connector(package: str, name: str) -> ModuleType:
    try:
        return plugins.find(package, name)
    except plugins.PluginError as error:
        raise SettingsError(str(error)) from None
