"""The events of the benchmarks: valid events of the demo without duplicates, in Avro single-object encoding."""

from __future__ import annotations

import itertools
import time

from confluent_kafka import Producer

from cli.demo.people import People
from infra.kafka.client import client_config
from infra.kafka_settings import KafkaSettings
from schemas.codec import Codec


def payloads(count: int, tenant: str) -> list[tuple[bytes, bytes]]:
    """Return ``count`` events as (key, value); there is about one person for eight events."""
    codec = Codec()
    people = People(tenant, count * 2, 5, time.time_ns() // 1000)
    good = (e for e in people if e.form == "avro" and not e.duplicate)
    made = [(event.key, event.value) for event in itertools.islice(good, count)]
    while len(made) < count:  # more people, if the first set had too few valid events
        more = People(f"{tenant}-{len(made)}", count * 2, len(made), time.time_ns() // 1000)
        made += [(e.key, e.value) for e in more if e.form == "avro" and not e.duplicate][: count - len(made)]
    for _, value in made[:3]:
        codec.decode(value)
    return made


def fill(settings: KafkaSettings, topic: str, events: list[tuple[bytes, bytes]]) -> None:
    """Produce ``events`` to ``topic`` and wait until the broker has them."""
    config = {"queue.buffering.max.messages": 2_000_000, "linger.ms": 20}
    producer = Producer(client_config(settings, "bench") | config)
    for key, value in events:
        producer.produce(topic, value, key)
    producer.flush()
