"""Sends the events of the demo, some to Kafka and some in batches to the HTTP API."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import httpx

from cli.demo.people import DemoRecord
from infra.kafka.producer import Deliverer, Output

_TOPIC = "leads.received"
_BATCH_S = 0.05
_RETRY_S = 0.5
_MAX_ATTEMPTS = 20


@dataclass(slots=True)
class Sent:
    """Counts of the records sent so far. ``at``: event_id -> time of the first send, in seconds since 1970."""

    total: int = 0
    unique: int = 0
    duplicates: int = 0
    malformed: int = 0
    at: dict[str, float] = field(default_factory=dict)


async def send(
    events: Iterable[DemoRecord], sent: Sent, deliverer: Deliverer, http: httpx.AsyncClient, rate: int
) -> None:
    """Send ``events`` and update ``sent``; every event is acknowledged when this returns.

    Args:
        events: the records to send.
        sent: counters to update.
        deliverer: for the events that go to Kafka.
        http: client of the HTTP API.
        rate: events per second; 0 means as fast as possible.

    Raises:
        RuntimeError: the API rejected a batch or did not accept it in 20 attempts.

    """
    started_at = time.monotonic()
    size = max(1, int(rate * _BATCH_S)) if rate else 1000
    batch: list[DemoRecord] = []
    for event in events:
        batch.append(event)
        if len(batch) >= size:
            await _send_batch(batch, sent, deliverer, http)
            batch = []
            if rate and (early := sent.total / rate - (time.monotonic() - started_at)) > 0:
                await asyncio.sleep(early)
    await _send_batch(batch, sent, deliverer, http)


async def _send_batch(batch: list[DemoRecord], sent: Sent, deliverer: Deliverer, http: httpx.AsyncClient) -> None:
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
    for _ in range(_MAX_ATTEMPTS):
        try:
            response = await http.post("/v1/events", content=body, headers={"Content-Type": "application/json"})
        except httpx.TransportError:
            response = None
        if response is not None and response.status_code == httpx.codes.ACCEPTED:
            return
        if response is not None and response.status_code < httpx.codes.INTERNAL_SERVER_ERROR:
            raise RuntimeError(f"the API responded with status {response.status_code}: {response.text[:300]}")
        await asyncio.sleep(_RETRY_S)
    raise RuntimeError(f"the API did not accept a batch in {_MAX_ATTEMPTS} attempts")
