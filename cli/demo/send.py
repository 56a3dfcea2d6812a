"""Sending the demonstration's events through both front doors: Kafka, and the API by batches."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import httpx

from cli.demo.people import Sendable
from infra.kafka.producer import Deliverer, Output

_TOPIC = "leads.received"
_SLICE_S = 0.05
_RETRY_S = 0.5
_TRIES = 20


@dataclass(slots=True)
class Sent:
    """What has gone out so far; ``at`` is when an event was first handed over (seconds since 1970, by event_id)."""

    total: int = 0
    unique: int = 0
    duplicates: int = 0
    malformed: int = 0
    at: dict[str, float] = field(default_factory=dict)


async def send(
    events: Iterable[Sendable], sent: Sent, deliverer: Deliverer, http: httpx.AsyncClient, rate: int
) -> None:
    """Send ``events`` at about ``rate`` a second (0: as fast as they are taken); each is acknowledged on return.

    Raises:
        RuntimeError: the API refused or did not take an event that is good.

    """
    began = time.monotonic()
    size = max(1, int(rate * _SLICE_S)) if rate else 1000
    batch: list[Sendable] = []
    for event in events:
        batch.append(event)
        if len(batch) >= size:
            await _send_slice(batch, sent, deliverer, http)
            batch = []
            if rate and (early := sent.total / rate - (time.monotonic() - began)) > 0:
                await asyncio.sleep(early)
    await _send_slice(batch, sent, deliverer, http)


async def _send_slice(batch: list[Sendable], sent: Sent, deliverer: Deliverer, http: httpx.AsyncClient) -> None:
    now = time.time()
    for event in batch:
        if event.event_id:
            sent.at.setdefault(event.event_id, now)
    by_http = [event.value for event in batch if event.form == "http"]
    by_kafka = [Output(_TOPIC, event.key, event.value) for event in batch if event.form != "http"]
    await asyncio.gather(deliverer.deliver(by_kafka), _post(by_http, http))
    for event in batch:
        sent.total += 1
        sent.malformed += event.form == "broken"
        sent.duplicates += event.duplicate
        sent.unique += event.form != "broken" and not event.duplicate


async def _post(values: list[bytes], http: httpx.AsyncClient) -> None:
    if not values:
        return
    body = b"[" + b",".join(values) + b"]"
    for _ in range(_TRIES):
        try:
            answer = await http.post("/v1/events", content=body, headers={"Content-Type": "application/json"})
        except httpx.TransportError:
            answer = None
        if answer is not None and answer.status_code == httpx.codes.ACCEPTED:
            return
        if answer is not None and answer.status_code < httpx.codes.INTERNAL_SERVER_ERROR:
            raise RuntimeError(f"the API answered {answer.status_code}: {answer.text[:300]}")
        await asyncio.sleep(_RETRY_S)
    raise RuntimeError("the API did not take a batch")
