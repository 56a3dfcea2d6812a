"""The sinks' composition root: each function builds one sink's clients, runs it until ``stop``, and closes them."""

from __future__ import annotations

import asyncio

import asyncpg

from infra import http, plugins
from infra.clickhouse.client import ClickHouse
from infra.clock import now_us
from infra.kafka.batches import run_batches
from infra.kafka.producer import Deliverer
from infra.postgres.pool import connect
from infra.runtime import Stop, log
from infra.settings import Settings, SettingsError
from schemas.codec import Codec
from sinks.clickhouse import STAGE, TOPICS, ClickHouseSink
from sinks.crm import Connector, SyncConfig
from sinks.crm.reconciler import Reconciler
from sinks.crm.store import Store
from sinks.crm.wanted import Wanted
from sinks.messages import Channel, DeliveryConfig, requests
from sinks.messages.delivery import Delivery
from sinks.messages.store import Store as MessageStore

# A sink takes many records at a time, so the broker need not answer for each few: half as many requests of it.
_FETCH = {"fetch.min.bytes": 65_536, "fetch.wait.max.ms": 200}


async def crm(settings: Settings, stop: Stop, name: str) -> None:
    """Keep the CRM ``name`` in step with the canonical record.

    Raises:
        SettingsError: there is no such CRM, or its settings (``LEADSTREAM_CRM_<NAME>_*``) are wrong.

    """
    try:
        module = plugins.find("sinks.crm", name)
    except plugins.PluginError as error:
        raise SettingsError(str(error)) from None
    config: SyncConfig = settings.section(f"crm_{name}", module.Config)
    pool = await connect(settings.database_url, size=config.in_flight + 2, application=f"crm-{name}")
    deliverer = Deliverer(settings, f"crm-{name}", on_fatal=stop.fail)
    client = http.client(config.base_url, timeout_s=config.timeout_s, connections=config.in_flight * 2)
    try:
        await _sync(settings, stop, name, config, module.connect(config, client), pool, deliverer)
    finally:
        await client.aclose()
        await deliverer.close()
        await pool.close()


async def clickhouse(settings: Settings, stop: Stop) -> None:
    """Bring what was decided, and what could not be, to ClickHouse."""
    deliverer = Deliverer(settings, STAGE, on_fatal=stop.fail)
    try:
        async with ClickHouse(settings.clickhouse_url) as server:
            await run_batches(
                settings,
                group=STAGE,
                topics=TOPICS,
                processor=ClickHouseSink(server, Codec()),
                stop=stop,
                size=settings.sink_batch_size,
                linger_ms=settings.sink_batch_linger_ms,
                deliverer=deliverer,
                config=_FETCH,
            )
    finally:
        await deliverer.close()


async def messages(settings: Settings, stop: Stop, name: str) -> None:
    """Send the messages that the channel ``name`` is asked for.

    Raises:
        SettingsError: there is no such channel, or its settings (``LEADSTREAM_CHANNEL_<NAME>_*``) are wrong.

    """
    try:
        module = plugins.find("sinks.messages", name)
    except plugins.PluginError as error:
        raise SettingsError(str(error)) from None
    config: DeliveryConfig = settings.section(f"channel_{name}", module.Config)
    stage, codec, wake = f"messages-{name}", Codec(), asyncio.Event()
    pool = await connect(settings.database_url, size=config.max_connections + 2, application=stage)
    deliverer = Deliverer(settings, stage, on_fatal=stop.fail)
    channel: Channel = module.connect(config)
    asked = MessageStore(pool, name, lease_s=config.lease_s, clock=now_us)
    delivery = Delivery(
        asked, channel, config, stage=stage, emit=deliverer.deliver, wake=wake, codec=codec, clock=now_us
    )
    try:
        async with asyncio.TaskGroup() as loops:
            loops.create_task(delivery.run(stop))
            loops.create_task(
                run_batches(
                    settings,
                    group=stage,
                    topics=[requests.TOPIC],
                    processor=requests.Requests(asked, codec, channel=name, stage=stage, wake=wake, clock=now_us),
                    stop=stop,
                    size=settings.batch_size,
                    linger_ms=settings.batch_linger_ms,
                    deliverer=deliverer,
                )
            )
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None  # the first loop to fail ended the other
    finally:
        await channel.close()
        await deliverer.close()
        await pool.close()


async def _sync(
    settings: Settings,
    stop: Stop,
    name: str,
    config: SyncConfig,
    connector: Connector,
    pool: asyncpg.Pool,
    deliverer: Deliverer,
) -> None:
    stage = f"crm-{name}"
    wake = asyncio.Event()
    codec = Codec()
    store = Store(pool, name, lease_s=config.lease_s, clock=now_us)
    reconciler = Reconciler(
        store, connector, config, stage=stage, emit=deliverer.deliver, wake=wake, codec=codec, clock=now_us
    )
    for wrong in await connector.test():
        log(stage).warning("not ready", extra={"fields": {"crm": name, "detail": wrong}})
    try:
        async with asyncio.TaskGroup() as loops:
            loops.create_task(reconciler.run(stop))
            loops.create_task(
                run_batches(
                    settings,
                    group=stage,
                    topics=[f"leads.crm-{name}"],
                    processor=Wanted(store, codec, stage, wake),
                    stop=stop,
                    size=settings.batch_size,
                    linger_ms=settings.batch_linger_ms,
                    deliverer=deliverer,
                    config=_FETCH,
                )
            )
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None  # the first loop to fail ended the other
