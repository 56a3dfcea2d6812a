"""Open requests in a real Postgres, scripted providers, and the engine with a controlled clock and no jitter."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import pytest

from infra.kafka.outcome_records import OutcomeRecords
from infra.kafka.producer import Output
from infra.outcomes import Reason
from infra.postgres.leased import LeasedWork, WorkLimits
from infra.postgres.leased_outcomes import OutcomeQueue
from infra.postgres.leased_pause import Pause
from infra.postgres.leased_rows import Subject
from infra.postgres.pool import connect
from infra.retry import Backoff
from schemas.codec import Codec
from streams.enrichment.answers import EventRecords
from streams.enrichment.erased import PostgresErasures
from streams.enrichment.waterfall import Waterfall
from streams.enrichment.work import OpenRequests
from streams.enrichment.work_table import EnrichmentWorkTable, OpenRequest, WorkRow
from tests.streams.enrichment.pdl_process import PdlProcess
from tests.streams.enrichment.test_waterfall import Memory

CODEC = Codec()
START = 1_770_000_000_000_000
DAY_S = 86_400


class WorkClock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> int:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += int(seconds * 1e6)


@dataclass
class World:
    """A queue of open requests that only one test uses."""

    pool: asyncpg.Pool
    clock: WorkClock = field(default_factory=WorkClock)
    queue: str = field(default_factory=lambda: f"q-{uuid.uuid4().hex[:12]}")
    published: list[Output] = field(default_factory=list)

    def table(self) -> EnrichmentWorkTable:
        return EnrichmentWorkTable(
            self.pool, lease_s=120, expire_us=int(3 * DAY_S * 1e6), clock=self.clock, queue=self.queue
        )

    def work(self, *providers: Any, in_flight: int = 8) -> LeasedWork[WorkRow]:
        """Return the engine of one worker, with breakers and a cache of its own."""
        waterfall = Waterfall(providers, Memory(), deadline_s=0.05, now=self.clock)
        requests = OpenRequests(
            waterfall, EventRecords(CODEC), self.deliver, erasures=PostgresErasures(self.pool), clock=self.clock
        )
        return LeasedWork(
            "enrichment",
            self.table(),
            requests.handle,
            limits=WorkLimits(in_flight=in_flight),
            backoff=Backoff(5, 300, lambda: 0.5),
            pause=Pause("enrichment", self.queue, Backoff(1, 30, lambda: 0.5), self.clock),
            outcomes=OutcomeQueue(self.deliver),
            records=OutcomeRecords("enrichment", CODEC.encoder("outcome"), self.clock),
            wake=asyncio.Event(),
            clock=self.clock,
        )

    async def deliver(self, outputs: Sequence[Output]) -> None:
        await asyncio.sleep(0)
        self.published += outputs

    async def lead(self, *, version: int = 1, **attributes: Any) -> str:
        """Insert a lead and return its id."""
        lead_id = str(uuid.uuid4())
        await self.pool.execute(
            "INSERT INTO leads (lead_id, tenant, version, created_at, updated_at, attributes, provenance) "
            "VALUES ($1, 'acme', $2, $3, $3, $4, '{}')",
            lead_id,
            version,
            START,
            orjson.dumps({"email": f"{lead_id}@example.com"} | attributes).decode(),
        )
        return lead_id

    async def add(self, lead_id: str, event_id: str = "e-1", version: int = 1) -> Subject | None:
        """Store an open request that is due now; return the earlier one about the lead."""
        about = Subject("acme", event_id, lead_id, version, ("leads.enrichment-requested", 0, 7))
        earlier = await self.table().add([OpenRequest(about, "", Reason.UNAVAILABLE, self.clock())])
        return earlier.get(lead_id)

    async def rows(self) -> list[dict[str, Any]]:
        found = await self.pool.fetch("SELECT * FROM enrichment_work WHERE queue = $1 ORDER BY lead_id", self.queue)
        return [dict(row) for row in found]

    def reported(self) -> list[tuple[str, str, str]]:
        """Return event id, what and reason of the outcomes so far."""
        records = [CODEC.decode(o.value or b"").record for o in self.published if o.topic == "leads.outcomes"]
        return [(record["event_id"], record["what"], record["reason"]) for record in records]

    def events(self) -> list[dict[str, Any]]:
        return [CODEC.decode(o.value or b"").record for o in self.published if o.topic == "leads.received"]


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[PdlProcess]:
    provider = PdlProcess(tmp_path)
    yield provider
    provider.close()


@pytest.fixture
async def world(stack: Any) -> AsyncIterator[World]:
    async with await connect(stack.dsn, size=16, application="tests") as pool:
        yield World(pool)
