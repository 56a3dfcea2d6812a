"""Sends generated events to a stack that is being broken, until each is acknowledged; notes what was acknowledged."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from zlib import crc32

import httpx

from cli.demo.people import DemoRecord, People
from infra.clock import now_us
from infra.kafka.producer import Deliverer, Output
from infra.settings import Settings

TOPIC = "leads.received"
_OF_A_TENANT = 50_000  # so that the generator's memory is bounded
_DISORDER = 300  # records: how far an event can be from its place
_IN_FLIGHT = 8  # batches
_MAX_BY_HTTP = 400  # events in a request
_RETRY_S = 0.3

Coordinates = tuple[int, int]  # partition, offset


@dataclass(slots=True)
class Ledger:
    """What the stack has acknowledged.

    ``records``: coordinates -> checksum of the value, of the records that the broker acknowledged. ``events``: the
    valid events that the broker or the API acknowledged, as (tenant, event_id). ``repeated`` are acknowledged
    duplicates, and ``resent`` records that were sent again because nothing acknowledged them.
    """

    records: dict[Coordinates, int] = field(default_factory=dict)
    events: set[tuple[str, str]] = field(default_factory=set)
    by_http: int = 0
    broken: int = 0
    repeated: int = 0
    resent: int = 0
    seconds: float = 0.0

    @property
    def acknowledged(self) -> int:
        """The number of acknowledged records."""
        return len(self.records) + self.by_http


def generated(word: str, count: int, rng: random.Random) -> Iterator[tuple[str, DemoRecord]]:
    """Yield ``count`` records with their tenants (which start with ``word``), out of order, duplicates among them."""
    for number, start in enumerate(range(0, count, _OF_A_TENANT)):
        tenant = f"{word}-{number}"
        people = People(tenant, min(_OF_A_TENANT, count - start), rng.randrange(1 << 30), now_us(), f".{tenant}")
        records = iter(people)
        while window := list(islice(records, _DISORDER)):
            rng.shuffle(window)
            yield from ((tenant, record) for record in window)


class Load:
    """Sends records to Kafka and to the HTTP API of a stack; close it."""

    def __init__(self, settings: Settings, api_url: str) -> None:
        self.ledger = Ledger()
        self.sent = 0
        self._settings = settings
        self._deliverer = self._new_deliverer()
        self._failed = False
        self._http = httpx.AsyncClient(base_url=api_url, timeout=30, trust_env=False, headers=settings.api_headers)
        self._slots = asyncio.Semaphore(_IN_FLIGHT)

    def _new_deliverer(self) -> Deliverer:
        return Deliverer(self._settings, "chaos", on_fatal=self._on_fatal)

    def _on_fatal(self, _: Exception) -> None:
        self._failed = True

    async def send(self, records: Iterable[tuple[str, DemoRecord]], rate: float) -> None:
        """Send ``records`` at ``rate`` a second; each of them is acknowledged when this returns."""
        began, records = time.monotonic(), iter(records)
        async with asyncio.TaskGroup() as tasks:
            while batch := list(islice(records, max(20, min(1000, int(rate / 4))))):
                await self._slots.acquire()
                tasks.create_task(self._send(batch))
                self.sent += len(batch)
                await asyncio.sleep(max(0.0, self.sent / rate - (time.monotonic() - began)))
        self.ledger.seconds = time.monotonic() - began

    async def _send(self, batch: list[tuple[str, DemoRecord]]) -> None:
        by_http = [each for each in batch if each[1].form == "http"]
        by_kafka = [each for each in batch if each[1].form != "http"]
        try:
            await asyncio.gather(
                self._produce(by_kafka),
                *(self._post(by_http[at : at + _MAX_BY_HTTP]) for at in range(0, len(by_http), _MAX_BY_HTTP)),
            )
        finally:
            self._slots.release()
        for tenant, record in batch:
            self.ledger.broken += record.form == "broken"
            self.ledger.repeated += record.duplicate
            if record.form != "broken":
                self.ledger.events.add((tenant, record.event_id))

    async def _produce(self, left: list[tuple[str, DemoRecord]]) -> None:
        while left:
            deliverer = self._deliverer
            results = await deliverer.deliver_each([Output(TOPIC, record.key, record.value) for _, record in left])
            for (_, record), result in zip(left, results, strict=True):
                if not result.error:
                    self.ledger.records[result.partition, result.offset] = crc32(record.value)
            left = [each for each, result in zip(left, results, strict=True) if result.error]
            self.ledger.resent += len(left)
            if left:
                await asyncio.sleep(_RETRY_S)
            if self._failed:
                self._failed, self._deliverer = False, self._new_deliverer()
                await deliverer.close()

    async def _post(self, batch: list[tuple[str, DemoRecord]]) -> None:
        body = b"[" + b",".join(record.value for _, record in batch) + b"]"
        while True:
            try:
                answer = await self._http.post("/v1/events", content=body, headers={"Content-Type": "application/json"})
            except httpx.TransportError:
                pass
            else:
                if answer.status_code == httpx.codes.ACCEPTED:
                    self.ledger.by_http += len(batch)
                    return
                if answer.status_code < httpx.codes.INTERNAL_SERVER_ERROR:
                    raise AssertionError(f"the API refused valid events: {answer.status_code} {answer.text[:300]}")
            self.ledger.resent += len(batch)
            await asyncio.sleep(_RETRY_S)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()
        await self._deliverer.close()
