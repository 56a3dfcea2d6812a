"""Composition root of the sinks: each function builds the clients of one sink and runs it until ``stop``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from types import ModuleType

import asyncpg

from infra import http, plugins
from infra.clickhouse.client import ClickHouse
from infra.errors import DependencyUnavailable
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
from infra.tenant_files.last_valid import restore_last_valid
from schemas.codec import Codec
from sinks.account_work import AccountWork
from sinks.accounts import Account, Accounts, Wakes
from sinks.clickhouse import STAGE, TOPICS, ClickHouseSink
from sinks.crm import Connector, SyncConfig
from sinks.crm.account_rows import AccountRows, close_accounts
from sinks.crm.reconciler import Reconciler
from sinks.crm.sync_requests import SyncRequests
from sinks.crm.sync_table import CrmSyncTable
from sinks.messages import Channel, DeliveryConfig, message_requests
from sinks.messages.account_messages import AccountMessages
from sinks.messages.delivery import MessageDelivery
from sinks.messages.message_requests import MessageRequests
from sinks.messages.messages_table import MessagesTable

# A sink consumes records in large batches. Larger fetches halve the number of requests to the broker.
_FETCH = {"fetch.min.bytes": 65_536, "fetch.wait.max.ms": 200}
_OTHER_CONNECTIONS = 3  # of the Postgres pool, in addition to one per call: for the consumer, the listener, the claim
_CRM_PAUSE_MAX_S = 5.0
_CHANNEL_PAUSE_MAX_S = 30.0
_AHEAD = 7  # messages claimed ahead per connection: one claim serves many messages, and no connection waits for one
_AGAIN_S = 1.0
_STOP_SHARE = 0.8  # of shutdown_s, for the work in progress; the rest is for closing the clients


async def crm(settings: Settings, stop: Stop, name: str) -> None:
    """Sync leads to the CRM ``name``.

    Raises:
        SettingsError: there is no such CRM, or its settings (``LEADSTREAM_CRM_<NAME>_*``) are invalid.

    """
    accounts = Accounts[SyncConfig](settings, "crm", _connector("sinks.crm", name))
    size = accounts.process.in_flight + _OTHER_CONNECTIONS
    pool = await connect(settings.database_url, size=size, application=f"crm-{name}")
    deliverer = Deliverer(settings, f"crm-{name}", on_fatal=stop.fail)
    try:
        await restore_last_valid(accounts.tenants, pool, stop)
        await _sync(settings, stop, name, accounts, pool, deliverer)
    finally:
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
    accounts = Accounts[DeliveryConfig](settings, "channel", _connector("sinks.messages", name))
    size = accounts.process.max_connections + _OTHER_CONNECTIONS
    pool = await connect(settings.database_url, size=size, application=f"messages-{name}")
    deliverer = Deliverer(settings, f"messages-{name}", on_fatal=stop.fail)
    try:
        await restore_last_valid(accounts.tenants, pool, stop)
        await _deliver(settings, stop, name, accounts, pool, deliverer)
    finally:
        await deliverer.close()
        await close(pool)


async def _sync(
    settings: Settings,
    stop: Stop,
    name: str,
    accounts: Accounts[SyncConfig],
    pool: asyncpg.Pool,
    deliverer: Deliverer,
) -> None:
    stage, codec, wakes = f"crm-{name}", Codec(), Wakes()
    module, process = _connector("sinks.crm", name), accounts.process

    async def sync(account: Account[SyncConfig], stop: Stop) -> None:
        """Sync the leads of one account."""
        config, scope = account.config, account.scope
        table = CrmSyncTable(pool, scope, lease_s=process.lease_s)
        pause = Pause(stage, scope, Backoff(process.backoff_s, _CRM_PAUSE_MAX_S))
        async with http.client(
            config.base_url, timeout_s=config.timeout_s, connections=process.in_flight * 2
        ) as client:
            connector: Connector = module.connect(config, client)
            max_bytes = settings.batch_bytes // (process.in_flight * max(1, len(accounts.current())))
            reconciler = Reconciler(table, connector, pause, stage, max_bytes=max_bytes)
            rows = AccountRows(pool, accounts, scope, reconciler.handle, wakes)
            if account.tenant and not await _done(partial(rows.open, account.tenant, name), stop):
                return
            work = LeasedWork(
                stage,
                table,
                rows.handle,
                limits=WorkLimits(
                    in_flight=process.in_flight,
                    batch_max=connector.batch_max,
                    poll_s=process.poll_s,
                    stop_s=settings.shutdown_s * _STOP_SHARE,
                ),
                backoff=Backoff(process.backoff_s, process.backoff_max_s),
                pause=pause,
                outcomes=OutcomeQueue(deliverer.deliver),
                records=OutcomeRecords(stage, codec.encoder("outcome")),
                wake=wakes(scope),
                ready=connector.ready,
                status=stop.status,
            )
            testing = asyncio.create_task(_report_problems(connector, stage, scope))
            try:
                await work.run(stop)
            finally:
                testing.cancel()
                pause.end()

    requests = run_batches(
        settings,
        group=stage,
        topics=[f"leads.crm-{name}"],
        processor=SyncRequests(CrmSyncTable(pool, name, lease_s=process.lease_s), codec, stage, wakes, accounts),
        stop=stop,
        limits=BatchLimits(settings.batch_size, settings.batch_bytes, settings.batch_linger_ms),
        deliverer=deliverer,
        config=_FETCH,
    )
    work = AccountWork(stage, accounts.current, sync)

    async def changed() -> None:
        await _done(lambda: close_accounts(pool, name, accounts.own_scopes()), stop)
        await work.apply()

    await run_together(work.run(stop), changed(), accounts.tenants.watch(stop, changed), requests)


async def _deliver(
    settings: Settings,
    stop: Stop,
    name: str,
    accounts: Accounts[DeliveryConfig],
    pool: asyncpg.Pool,
    deliverer: Deliverer,
) -> None:
    stage, codec, wakes = f"messages-{name}", Codec(), Wakes()
    module, process = _connector("sinks.messages", name), accounts.process
    records = OutcomeRecords(stage, codec.encoder("outcome"))

    async def deliver(account: Account[DeliveryConfig], stop: Stop) -> None:
        """Send the messages of one account."""
        config, scope = account.config, account.scope
        table = MessagesTable(pool, scope, lease_s=process.lease_s)
        pause = Pause(stage, scope, Backoff(process.backoff_s, _CHANNEL_PAUSE_MAX_S))
        channel: Channel = module.connect(config)
        delivery = MessageDelivery(table, channel, config, pause=pause, codec=codec, stage=stage)
        work = LeasedWork(
            stage,
            table,
            AccountMessages(table, accounts, scope, delivery.handle, wakes).handle,
            limits=WorkLimits(
                in_flight=process.max_connections,
                ahead=_AHEAD * process.max_connections,
                poll_s=process.poll_s,
                stop_s=settings.shutdown_s * _STOP_SHARE,
            ),
            backoff=Backoff(process.backoff_s, process.backoff_max_s),
            pause=pause,
            outcomes=OutcomeQueue(deliverer.deliver),
            records=records,
            wake=wakes(scope),
            status=stop.status,
        )
        try:
            await work.run(stop)
        finally:
            await channel.close()
            pause.end()

    requests = run_batches(
        settings,
        group=stage,
        topics=[message_requests.TOPIC],
        processor=MessageRequests(
            MessagesTable(pool, name, lease_s=process.lease_s),
            codec,
            records,
            channel=name,
            stage=stage,
            wake=wakes,
            channels=[*plugins.discover("sinks.messages")],
            accounts=accounts,
        ),
        stop=stop,
        limits=BatchLimits(settings.batch_size, settings.batch_bytes, settings.batch_linger_ms),
        deliverer=deliverer,
    )
    work = AccountWork(stage, accounts.current, deliver)
    await run_together(work.run(stop), accounts.tenants.watch(stop, work.apply), requests)


async def _report_problems(connector: Connector, stage: str, scope: str) -> None:
    for problem in await connector.test():
        log(stage).warning("CRM set-up problem", extra={"fields": {"crm": scope, "detail": problem}})


async def _done(step: Callable[[], Awaitable[None]], stop: Stop) -> bool:
    """Repeat ``step`` while Postgres is unavailable; return False if a stop was requested before it succeeded."""
    while not stop.requested:
        try:
            await step()
        except DependencyUnavailable:  # the consumer of this process reports it
            await stop.wait(_AGAIN_S)
        else:
            return True
    return False


def _connector(package: str, name: str) -> ModuleType:
    try:
        return plugins.find(package, name)
    except plugins.PluginError as error:
        raise SettingsError(str(error)) from None
