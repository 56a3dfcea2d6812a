"""One implementation of the hop: consume ``count`` events, decode and validate each, forward its bytes.

``python bench/hop_worker.py ours|raw|quix|faust BOOTSTRAP SOURCE TARGET COUNT`` prints the seconds from the first
record that is consumed to the last one that is delivered. ``raw`` does not decode: it is the upper limit.
"""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from collections.abc import AsyncGenerator
from typing import Any

from infra.outcomes import Dead
from schemas import rules
from schemas.codec import Codec
from schemas.registry import registry

_AHEAD = 86_400_000_000


def work() -> Any:
    """Return the function that every implementation applies to a payload."""
    codec, events, now = Codec(), registry().events, time.time_ns() // 1000

    def judge(payload: bytes) -> bytes:
        decoded = codec.decode(payload)
        good = rules.check_event(events[decoded.type], decoded.record, now, _AHEAD)
        return b"" if isinstance(good, Dead) else payload

    return judge


def raw(bootstrap: str, source: str, target: str, count: int) -> float:
    """Run librdkafka (confluent-kafka) without decoding; return the seconds."""
    from confluent_kafka import Consumer, Producer  # noqa: PLC0415

    from infra.kafka.client import client_config  # noqa: PLC0415
    from infra.kafka_settings import KafkaSettings  # noqa: PLC0415

    config = client_config(KafkaSettings(kafka_bootstrap=bootstrap), "raw")

    consumer = Consumer(config | {"group.id": uuid.uuid4().hex, "auto.offset.reset": "earliest"})
    producer = Producer(config | {"acks": "all", "linger.ms": 5, "compression.type": "lz4"})
    consumer.subscribe([source])
    done, began = 0, 0.0
    while done < count:
        for message in consumer.consume(2000, 0.05):
            began = began or time.perf_counter()
            producer.produce(target, message.value(), message.key())
            done += 1
        producer.poll(0)
    producer.flush()
    consumer.commit(asynchronous=False)
    took = time.perf_counter() - began
    consumer.close()
    return took


def ours(bootstrap: str, source: str, target: str, count: int) -> float:
    """Run the batch loop of leadstream; return the seconds."""
    from infra.kafka.batch_limits import BatchLimits  # noqa: PLC0415
    from infra.kafka.batches import run_batches  # noqa: PLC0415
    from infra.kafka.processor import Outputs  # noqa: PLC0415
    from infra.kafka.producer import Deliverer, Output  # noqa: PLC0415
    from infra.runtime import Stop  # noqa: PLC0415
    from infra.settings import Settings  # noqa: PLC0415

    judge = work()

    class Hop:
        def __init__(self, stop: Stop) -> None:
            self.stop, self.done, self.began = stop, 0, 0.0

        def prepare(self, messages: Any) -> list[Output]:
            self.began = self.began or time.perf_counter()
            return [Output(target, m.key(), judge(m.value())) for m in messages]

        async def apply(self, outputs: list[Output]) -> AsyncGenerator[Outputs, None]:
            self.done += len(outputs)
            if self.done >= count:
                self.stop.request()
            yield outputs

    async def main() -> float:
        settings = Settings.load({"LEADSTREAM_KAFKA_BOOTSTRAP": bootstrap})
        stop, deliverer = Stop(), Deliverer(settings, "hop")
        hop = Hop(stop)
        group = uuid.uuid4().hex
        options: Any = {
            "limits": BatchLimits(2000, 1 << 24, 20),
            "stop": stop,
            "processor": hop,
            "deliverer": deliverer,
        }
        await run_batches(settings, group=group, topics=[source], **options)
        return time.perf_counter() - hop.began

    import uvloop  # noqa: PLC0415

    from infra.runtime import collect_garbage_rarely  # noqa: PLC0415

    collect_garbage_rarely()  # as every worker does

    return float(uvloop.run(main()))


def quix(bootstrap: str, source: str, target: str, count: int) -> float:
    """Run quixstreams with its default settings, except linger and compression; return the seconds."""
    from quixstreams import Application  # type: ignore[import-not-found]  # noqa: PLC0415

    judge, seen = work(), [0, 0.0]
    app = Application(
        broker_address=bootstrap,
        consumer_group=uuid.uuid4().hex,
        auto_offset_reset="earliest",
        loglevel="ERROR",
        producer_extra_config={"linger.ms": 5, "compression.type": "lz4"},
    )

    def judged(value: bytes) -> bytes:
        seen[1] = seen[1] or time.perf_counter()
        seen[0] += 1
        return bytes(judge(value))

    into = app.topic(target, value_serializer="bytes", key_serializer="bytes")
    frame = app.dataframe(app.topic(source, value_deserializer="bytes", key_deserializer="bytes"))
    frame.apply(judged).to_topic(into)
    app.run(count=count)
    return time.perf_counter() - float(seen[1])


def faust(bootstrap: str, source: str, target: str, count: int) -> float:
    """Run a plain Faust agent with one ``send`` per event; return the seconds."""
    import faust as library  # noqa: PLC0415

    judge, seen = work(), [0, 0.0]
    app = library.App(
        uuid.uuid4().hex,
        broker=f"kafka://{bootstrap}",
        value_serializer="raw",
        key_serializer="raw",
        consumer_auto_offset_reset="earliest",
        web_enabled=False,
        topic_disable_leader=True,
        producer_acks=-1,
        producer_linger=0.005,
        store="memory://",
    )
    into = app.topic(target, value_serializer="raw", key_serializer="raw")
    took: list[float] = []

    @app.agent(app.topic(source, value_serializer="raw", key_serializer="raw"))
    async def hop(stream: Any) -> None:
        pending: list[Any] = []
        async for event in stream.events():
            seen[1] = seen[1] or time.perf_counter()
            pending.append(await into.send(key=event.message.key, value=judge(event.value)))
            seen[0] += 1
            if seen[0] >= count:
                await asyncio.gather(*pending)
                took.append(time.perf_counter() - float(seen[1]))
                sys.stdout.write(f"{took[0]}\n")
                sys.stdout.flush()
                import os  # noqa: PLC0415

                os._exit(0)

    app.finalize()
    worker = library.Worker(app, loglevel="ERROR", redirect_stdouts=False)
    worker.execute_from_commandline()
    return took[0]


if __name__ == "__main__":
    name, bootstrap, source, target, count = sys.argv[1:]
    seconds = {"raw": raw, "ours": ours, "quix": quix, "faust": faust}[name](bootstrap, source, target, int(count))
    sys.stdout.write(f"{seconds}\n")
