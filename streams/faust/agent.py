"""Runs a handler over one topic with Faust: one app, one agent, one :class:`streams.faust.ordered.OrderedPipe`.

Faust provides group membership, fetching and back-pressure. :mod:`streams.faust.consumer` decides what is committed.

Guarantees: the process exits at once with code 70, to be restarted, when the event loop hangs, when the Faust app has
crashed, or when there are records but no commit for a minute while all dependencies are available. Faust itself only
logs these failures.

Not used: Faust tables, ``send``, ``take``, the web server, and topic creation. State is in Postgres, outputs are
published by :class:`infra.kafka.producer.Deliverer`, and the topic must exist.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import faust
from confluent_kafka import KafkaException
from faust.transport.drivers import aiokafka as driver
from yarl import URL

from infra.errors import DependencyUnavailable
from infra.kafka import client
from infra.kafka.producer import Deliverer
from infra.runtime import Stop, log
from infra.settings import Settings
from streams.faust.consumer import Consumer
from streams.faust.credentials import credentials
from streams.faust.ordered import Handler, OrderedPipe, Record
from streams.faust.watchdog import Watchdog


def build(settings: Settings, pipe: OrderedPipe, topic: str) -> Any:
    """Return a Faust app that consumes ``topic`` as group ``pipe.group``; must be called in the running event loop."""
    home = settings.home / "faust"
    home.mkdir(parents=True, exist_ok=True)
    servers = [URL(f"kafka://{address}") for address in client.addresses(settings)]
    app = faust.App(
        pipe.group,
        broker=servers,
        broker_credentials=credentials(settings),
        datadir=home,
        store="memory://",
        key_serializer="raw",
        value_serializer="raw",
        autodiscover=False,
        processing_guarantee="at_least_once",
        consumer_auto_offset_reset="earliest",
        broker_client_id=f"leadstream-{pipe.group}",
        broker_commit_interval=1.0,
        broker_commit_every=20_000,
        broker_max_poll_records=2000,
        broker_max_poll_interval=300.0,
        broker_session_timeout=10.0,
        broker_heartbeat_interval=2.0,
        broker_rebalance_timeout=30.0,
        broker_request_timeout=40.0,
        # Of one partition. Small, so that the partitions take turns: a fetch is processed before the next one is asked
        # for. The broker returns a larger record all the same.
        consumer_max_fetch_size=256 << 10,
        stream_buffer_maxsize=4096,
        stream_wait_empty=True,
        producer_acks=-1,
        topic_allow_declare=False,
        topic_disable_leader=True,
        table_standby_replicas=0,
        web_enabled=False,
        worker_redirect_stdouts=False,
    )
    kind = type("Consumer", (Consumer,), {"pipe": pipe})
    app.transport = type("Transport", (driver.Transport,), {"Consumer": kind})(servers, app)

    async def consume(stream: Any) -> None:
        async for event in stream.noack().events():
            message = event.message
            if not await app.consumer.accept(message):
                continue
            headers = message.headers
            pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers or ())
            record = Record((message.topic, message.partition), message.offset, message.key, message.value, pairs)
            await pipe.submit(record, event.ack)

    source = app.topic(topic, key_serializer="raw", value_serializer="raw", key_type=bytes, value_type=bytes)
    app.agent(source, name=f"{pipe.group}.consume")(consume)
    return app


async def run_agent(
    settings: Settings,
    stop: Stop,
    *,
    group: str,
    topic: str,
    handler: Handler,
    deliverer: Deliverer,
    max_inflight: int = 256,
) -> None:
    """Run ``handler`` over ``topic`` until ``stop``. Must be called from ``infra.runtime.run``.

    Crash: records whose offsets were not committed are processed again, so the handler must be idempotent.

    Args:
        settings: of the process.
        stop: requests the end of the process; carries its health status.
        group: the consumer group.
        topic: must exist; otherwise this waits for it.
        handler: is called with one record and returns its outputs. It must return in bounded time. If it raises
            DependencyUnavailable, it is called again with the same record.
        deliverer: publishes the outputs. A record is acked when the broker has all of its outputs.
        max_inflight: maximum number of records that are processed at the same time. Records of one key are processed
            in order.

    """
    stop.status.ready = False
    pipe = OrderedPipe(group, handler, deliverer.deliver, max_inflight=max_inflight, status=stop.status)
    if not await _topic_exists(settings, stop, group, topic):
        return
    app = build(settings, pipe, topic)
    watchdog = Watchdog(app, pipe)
    await app.start()
    beat = asyncio.create_task(watchdog.beat(stop))
    try:
        await stop.wait()
    finally:  # also if another task of the process failed: Faust's threads would keep the process running
        beat.cancel()
        await _leave(app, pipe, stop, settings.shutdown_s)
        watchdog.ended.set()


async def _leave(app: Any, pipe: OrderedPipe, stop: Stop, shutdown_s: float) -> None:
    """Finish the records in flight, commit and leave the group; exit the process if Faust does not stop in time."""
    finished = await pipe.pause(shutdown_s / 2)
    with suppress(TimeoutError):
        await asyncio.wait_for(app.consumer.commit(), shutdown_s / 4)
    try:
        async with asyncio.timeout(shutdown_s / 4):
            await app.stop()
    except TimeoutError:
        log(pipe.group).warning("Faust did not stop in time; exiting", extra={"fields": {"all_acked": finished}})
        os._exit(0 if finished and stop.failure is None else 1)


async def _topic_exists(settings: Settings, stop: Stop, group: str, topic: str) -> bool:
    """Wait until Kafka is available and has ``topic``; return False if ``stop`` is requested first."""
    admin = client.admin(settings, group, on_fatal=stop.fail)
    logged = ""
    while not stop.requested:
        try:
            known = await asyncio.to_thread(functools.partial(client.metadata, admin, topic, timeout_s=5))
            waiting = f"waiting for topic {topic}" if known.topics[topic].error else ""
        except (KafkaException, DependencyUnavailable):
            waiting = "waiting for Kafka"
        stop.status.waiting = waiting
        if not waiting:
            return True
        if waiting != logged:
            log("faust").warning(waiting)
            logged = waiting
        await stop.wait(1.0)
    return False
