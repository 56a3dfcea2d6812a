"""The readiness check of the API: Kafka responds and has the topic of lead events."""

from __future__ import annotations

import asyncio
from functools import partial

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from api.ingest.accept import TOPIC
from infra.errors import DependencyUnavailable
from infra.kafka.client import metadata

_TIMEOUT_S = 2.0


async def kafka_unavailable(admin: AdminClient) -> str:
    """Return why events cannot be accepted now, or "" if they can. Takes at most about two seconds."""
    try:
        found = await asyncio.to_thread(partial(metadata, admin, TOPIC, timeout_s=_TIMEOUT_S))
    except KafkaException as error:
        return f"waiting for Kafka: {error.args[0].name()}"
    except DependencyUnavailable as error:
        return f"waiting for Kafka: {error}"
    return f"waiting for the topic {TOPIC}: run `leadstream topics apply`" if found.topics[TOPIC].error else ""
