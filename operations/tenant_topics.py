"""Creates the topic of each tenant while the pipeline runs: a new tenant is one new file."""

from __future__ import annotations

import asyncio
from pathlib import Path

from infra.errors import DependencyUnavailable
from infra.kafka.received import tenant_names, tenant_of
from infra.kafka.topics import TopicsError, load_topics
from infra.kafka_settings import KafkaSettings
from infra.runtime import Stop, log
from operations.broker_topics import apply

_LOOK_EVERY_S = 2.0
_RETRY_S = 30.0


async def keep_topics(settings: KafkaSettings, folder: Path, stop: Stop) -> None:
    """Create the topic of each tenant that has a file in ``folder`` until ``stop``. No topic is deleted.

    A topic that cannot be created is logged and tried again after 30 s: the other work of this process goes on.
    """
    created: set[str] = set()
    while not stop.requested:
        names = await asyncio.to_thread(tenant_names, folder)
        wait = _LOOK_EVERY_S
        if set(names) - created:
            try:
                await asyncio.to_thread(_create, settings, names)
                created = set(names)
            except (DependencyUnavailable, TopicsError) as error:
                log("maintenance").warning(
                    "the topics of tenants cannot be created", extra={"fields": {"why": str(error)}}
                )
                wait = _RETRY_S
        await stop.wait(wait)


def _create(settings: KafkaSettings, names: list[str]) -> None:
    apply(settings, {name: topic for name, topic in load_topics(tenants=names).items() if tenant_of(name)})
