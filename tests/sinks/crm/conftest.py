"""A real Postgres, and HubSpot's simulator in the test's process, with a controlled clock and no jitter."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import orjson
import pytest

from infra import http
from infra.kafka.outcome_records import OutcomeRecords
from infra.kafka.producer import Output
from infra.postgres.leased import LeasedWork, WorkLimits
from infra.postgres.leased_outcomes import OutcomeQueue
from infra.postgres.leased_pause import Pause
from infra.postgres.pool import connect
from infra.retry import Backoff
from schemas.codec import Codec
from simulators import hubspot as simulator
from sinks.crm import hubspot
from sinks.crm.reconciler import Reconciler
from sinks.crm.sync_table import CrmSyncTable, SyncRow, WantedVersion

CODEC = Codec()
START = 1_770_000_000_000_000
STAGE = "crm-hubspot"


@pytest.fixture
async def pool(stack: Any) -> AsyncIterator[asyncpg.Pool]:
    pool = await connect(stack.dsn, size=8, application="tests")
    yield pool
    await pool.close()


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> int:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += int(seconds * 1e6)


@dataclass
class World:
    """A destination that only one test uses, so that tests are independent."""

    dsn: str
    pool: asyncpg.Pool
    http: httpx.AsyncClient
    simulator: httpx.AsyncClient
    destination: str = field(default_factory=lambda: f"hubspot-{uuid.uuid4()}")
    clock: Clock = field(default_factory=Clock)
    outcomes: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    def table(self, lease_s: float = 60) -> CrmSyncTable:
        return CrmSyncTable(self.pool, self.destination, lease_s=lease_s, clock=self.clock)

    def sync(
        self,
        connector: Any = None,
        lease_s: float = 60,
        handle: Any = None,
        *,
        merge_delay_s: float = 0,
        **changes: Any,
    ) -> LeasedWork[SyncRow]:
        """Return the engine with the reconciler, as sinks.app builds it."""
        config = hubspot.Config(
            base_url="http://hubspot",
            token="pat-test",
            requests_per_10s=10_000,
            poll_s=0.05,
            merge_delay_s=merge_delay_s,
            **changes,
        )
        crm = connector or hubspot.connect(config, self.http)
        table = self.table(lease_s)
        backoff = Backoff(config.backoff_s, config.backoff_max_s, lambda: 0.5)
        pause = Pause(STAGE, self.destination, Backoff(config.backoff_s, 5, lambda: 0.5), self.clock)
        return LeasedWork(
            STAGE,
            table,
            handle or Reconciler(table, crm, pause, STAGE, clock=self.clock).handle,
            limits=WorkLimits(in_flight=config.in_flight, batch_max=crm.batch_max, poll_s=config.poll_s),
            backoff=backoff,
            pause=pause,
            outcomes=OutcomeQueue(self.emit),
            records=OutcomeRecords(STAGE, CODEC.encoder("outcome"), self.clock),
            wake=self.wake,
            ready=crm.ready,
            clock=self.clock,
        )

    async def emit(self, outputs: Sequence[Output]) -> None:
        self.outputs += outputs
        self.outcomes += [CODEC.decode(output.value or b"").record for output in outputs]

    async def lead(self, lead_id: str = "", version: int = 1, **attributes: Any) -> str:
        """Write a lead as intake does, and request its sync."""
        lead_id = await self.write(lead_id, version, **attributes)
        await self.want(lead_id, version)
        return lead_id

    async def write(self, lead_id: str = "", version: int = 1, **attributes: Any) -> str:
        lead_id = lead_id or str(uuid.uuid4())
        await self.pool.execute(
            "INSERT INTO leads (lead_id, tenant, version, created_at, updated_at, attributes, provenance) "
            "VALUES ($1, 'acme', $2, now(), now(), $3::text::jsonb, '{}') ON CONFLICT (lead_id) DO UPDATE "
            "SET version = EXCLUDED.version, attributes = EXCLUDED.attributes",
            lead_id,
            version,
            orjson.dumps(attributes).decode(),
        )
        return lead_id

    async def want(self, lead_id: str, version: int) -> None:
        await self.table().want([WantedVersion(lead_id, "acme", version, self.clock())])

    async def erase(self, lead_id: str) -> None:
        await self.pool.execute("UPDATE leads SET erased_at = $2 WHERE lead_id = $1", lead_id, self.clock())

    async def merge(self, loser: str, survivor: str) -> None:
        await self.pool.execute(
            "UPDATE leads SET merged_into = $2, version = version + 1 WHERE lead_id = $1", loser, survivor
        )
        await self.pool.execute("INSERT INTO lead_aliases (alias_id, lead_id) VALUES ($1, $2)", loser, survivor)

    async def row(self, lead_id: str) -> Any:
        return await self.pool.fetchrow(
            "SELECT * FROM crm_sync WHERE destination = $1 AND lead_id = $2", self.destination, lead_id
        )

    async def rows(self) -> int:
        count: int = await self.pool.fetchval("SELECT count(*) FROM crm_sync WHERE destination = $1", self.destination)
        return count

    async def stats(self) -> dict[str, int]:
        stats: dict[str, int] = (await self.simulator.get("/_simulator/stats")).json()
        return stats

    async def set(self, what: str, **values: Any) -> None:
        await self.simulator.post(f"/_simulator/{what}", json=values)

    async def contact(self, lead_id: str) -> dict[str, Any] | None:
        """Return the contact's properties as CRM users see them, or None."""
        app = await self.simulator.get(f"/crm/v3/objects/contacts/{lead_id}?idProperty=leadstream_lead_id")
        return app.json().get("properties") if app.status_code == 200 else None


@pytest.fixture
async def world(stack: Any, pool: asyncpg.Pool, tmp_path: Path) -> AsyncIterator[World]:
    app = simulator.app(tmp_path)
    transport = httpx.ASGITransport(app=app)
    headers = {"authorization": "Bearer pat-test"}
    async with (
        app.router.lifespan_context(app),
        http.client("http://hubspot", transport=transport) as client,
        httpx.AsyncClient(base_url="http://hubspot", transport=transport, headers=headers) as user,
    ):
        world = World(stack.dsn, pool, client, user)
        await world.set("limits", per_10s=100_000)
        yield world
