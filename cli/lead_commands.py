"""Sends a command about two leads to intake and waits until it is decided, for ``leads merge`` and ``leads split``."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import asyncpg
from confluent_kafka import Consumer, KafkaException, TopicPartition

from infra.clock import now_us, uuid7
from infra.errors import DependencyUnavailable
from infra.kafka.client import metadata, reader
from infra.kafka.dead_letters import TOPIC as DEAD
from infra.kafka.producer import Deliverer, Output
from infra.settings import Settings
from schemas.codec import Codec
from schemas.senders import OWN_SOURCE
from streams.intake.event import event_key

SOURCE = f"{OWN_SOURCE}cli"
_TOPIC = "leads.received"
_TIMEOUT_S = 10.0
_POLL_S = 0.2
_NO_IDENTIFIERS: dict[str, Any] = {"external_id": "", "email": "", "phone": "", "anonymous_id": "", "crm_ids": {}}


class NotDecidedError(Exception):
    """Intake has not decided the command in time; it may still do so."""


@dataclass(frozen=True, slots=True)
class Decided:
    """The result: the changed lead and its version; or why the command was not executed."""

    event_id: str
    lead_id: str = ""
    version: int = 0
    reason: str = ""
    detail: str = ""


async def execute(
    settings: Settings, postgres: asyncpg.Connection, kind: str, tenant: str, leads: tuple[str, str], timeout_s: float
) -> Decided:
    """Send the event ``kind`` about two leads and return what intake decided.

    Raises:
        DependencyUnavailable: Kafka or Postgres is unavailable.
        NotDecidedError: not decided within ``timeout_s`` seconds.

    """
    event_id = f"cli-{uuid7()}"
    record = {
        "envelope": {
            "event_id": event_id,
            "tenant": tenant,
            "occurred_at": now_us(),
            "source": SOURCE,
            "context": {},
        },
        "identifiers": _NO_IDENTIFIERS,
        "lead_id": leads[0],
        "other_lead_id": leads[1],
        "requested_by": "",
    }
    letters = await asyncio.to_thread(_end_of_dead_letters, settings)
    try:
        place = await _send(settings, Output(_TOPIC, f"{tenant}:{leads[0]}".encode(), Codec().encoder(kind)(record)))
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if receipt := await postgres.fetchrow(
                "SELECT lead_id::text, version FROM receipts WHERE key = $1::uuid", event_key(tenant, event_id)
            ):
                return Decided(event_id, receipt["lead_id"], receipt["version"])
            if found := await asyncio.to_thread(_letter_about, letters, place):
                return Decided(event_id, reason=found[0], detail=found[1])
    finally:
        await asyncio.to_thread(letters.close)
    raise NotDecidedError(
        f"Intake has not decided the event {event_id} within {timeout_s:g} s; it will when it gets there. Look at "
        f"`leadstream lag`, then at `leadstream trace {event_id}`."
    )


async def _send(settings: Settings, output: Output) -> tuple[str, str, str]:
    deliverer = Deliverer(settings, "leads", timeout_s=_TIMEOUT_S)
    try:
        (delivery,) = await deliverer.deliver_each([output])
    finally:
        await deliverer.close()
    if delivery.error:
        raise DependencyUnavailable("Kafka", delivery.error)
    return _TOPIC, str(delivery.partition), str(delivery.offset)


def _end_of_dead_letters(settings: Settings) -> Consumer:
    """Return a consumer of the dead letters from now on."""
    consumer = reader(settings, "leadstream-leads")
    try:
        partitions = metadata(consumer, DEAD, timeout_s=_TIMEOUT_S).topics[DEAD].partitions
        ends = {p: consumer.get_watermark_offsets(TopicPartition(DEAD, p), _TIMEOUT_S)[1] for p in partitions}
        consumer.assign([TopicPartition(DEAD, p, end) for p, end in ends.items()])
    except KafkaException as error:
        consumer.close()
        raise DependencyUnavailable("Kafka", error.args[0].name()) from error
    return consumer


def _letter_about(consumer: Consumer, place: tuple[str, str, str]) -> tuple[str, str] | None:
    """Return reason and detail of the dead letter about the record at ``place``, if it has come."""
    for message in consumer.consume(100, _POLL_S):
        if message.error() is not None:
            continue
        headers = {name: (value or b"").decode(errors="replace") for name, value in message.headers() or []}
        if tuple(headers.get(f"leadstream.{name}") for name in ("topic", "partition", "offset")) == place:
            return headers["leadstream.reason"], headers["leadstream.detail"]
    return None
