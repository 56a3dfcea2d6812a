"""A real Postgres, the SMTP simulator on localhost, and the engine with a controlled clock and no jitter."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import orjson
import pytest

from infra.kafka.outcome_records import OutcomeRecords
from infra.kafka.producer import Output
from infra.postgres.leased import LeasedWork, WorkLimits
from infra.postgres.leased_outcomes import OutcomeQueue
from infra.postgres.leased_pause import Pause
from infra.postgres.pool import connect
from infra.retry import Backoff
from schemas.codec import Codec
from simulators import smtp as simulator
from sinks.messages import Channel, email
from sinks.messages.delivery import MessageDelivery
from sinks.messages.message_requests import MessageRequests
from sinks.messages.messages_table import MessageRow, MessagesTable
from tests.conftest import outputs_of

CODEC = Codec()
START = 1_770_000_000_000_000
STAGE = "messages-email"


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> int:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += int(seconds * 1e6)


class Record:
    """A consumed record of leads.messages-requested."""

    def __init__(self, value: bytes | None, offset: int) -> None:
        self._value = value
        self._offset = offset

    def topic(self) -> str:
        return "leads.messages-requested"

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes | None:
        return None

    def value(self) -> bytes | None:
        return self._value

    def headers(self) -> list[tuple[str, bytes]]:
        return []


@dataclass
class World:
    """A channel that only one test uses, so that tests are independent."""

    pool: asyncpg.Pool
    smtp_port: int
    http: httpx.AsyncClient
    name: str = field(default_factory=lambda: f"email-{uuid.uuid4()}")
    clock: Clock = field(default_factory=Clock)
    outcomes: list[dict[str, Any]] = field(default_factory=list)
    channels: list[Channel] = field(default_factory=list)
    offsets: Any = field(default_factory=lambda: itertools.count(1))

    def config(self, **changes: Any) -> email.Config:
        given = {"url": f"smtp://127.0.0.1:{self.smtp_port}", "from_address": "Us <us@example.com>", "timeout_s": 5}
        return email.Config(**given | changes)

    def channel(self, **changes: Any) -> email.Email:
        channel = email.connect(self.config(**changes))
        self.channels.append(channel)
        return channel

    def table(self, **changes: Any) -> MessagesTable:
        return MessagesTable(self.pool, self.name, lease_s=self.config(**changes).lease_s, clock=self.clock)

    @property
    def records(self) -> OutcomeRecords:
        return OutcomeRecords(STAGE, CODEC.encoder("outcome"), self.clock)

    async def emit(self, outputs: Any) -> None:
        self.outcomes += [CODEC.decode(output.value).record for output in outputs]

    def delivery(
        self, channel: Channel | None = None, *, table: MessagesTable | None = None, **changes: Any
    ) -> LeasedWork[MessageRow]:
        """Return the engine with the delivery, as sinks.app builds it."""
        table, channel, config = (
            table or self.table(**changes),
            channel or self.channel(**changes),
            self.config(**changes),
        )
        pause = Pause(STAGE, self.name, Backoff(config.backoff_s, 30, lambda: 0.5), self.clock)
        delivery = MessageDelivery(table, channel, config, pause=pause, codec=CODEC, stage=STAGE, clock=self.clock)
        return LeasedWork(
            STAGE,
            table,
            delivery.handle,
            limits=WorkLimits(in_flight=config.max_connections, ahead=7 * config.max_connections, poll_s=config.poll_s),
            backoff=Backoff(config.backoff_s, config.backoff_max_s, lambda: 0.5),
            pause=pause,
            outcomes=OutcomeQueue(self.emit),
            records=self.records,
            wake=asyncio.Event(),
            clock=self.clock,
        )

    def requests(self) -> MessageRequests:
        return MessageRequests(self.table(), CODEC, self.records, channel=self.name, stage=STAGE, wake=asyncio.Event())

    async def lead(self, lead_id: str = "", *, erased_at: int = 0, **attributes: Any) -> str:
        lead_id = lead_id or str(uuid.uuid4())
        await self.pool.execute(
            "INSERT INTO leads (lead_id, tenant, version, created_at, updated_at, attributes, provenance, erased_at) "
            "VALUES ($1, 'acme', 1, now(), now(), $2, '{}', $3) ON CONFLICT (lead_id) DO UPDATE "
            "SET attributes = EXCLUDED.attributes, erased_at = EXCLUDED.erased_at",
            lead_id,
            orjson.dumps(attributes).decode(),
            erased_at or None,
        )
        return lead_id

    async def add_history(self, lead_id: str, event_id: str, at: int) -> None:
        """Write to the lead's history that an event occurred at ``at``, as intake does."""
        await self.pool.execute(
            "INSERT INTO lead_history (lead_id, version, month, decided_at, tenant, event_id, event_type, source, "
            "occurred_at, changes) SELECT $1, count(*) + 1, date_trunc('month', now())::date, now(), 'acme', $2, "
            "'form_submitted', 'web', $3, '{}' FROM lead_history WHERE lead_id = $1",
            lead_id,
            event_id,
            at,
        )

    def request(self, lead_id: str, **changes: Any) -> Record:
        record = {
            "message_id": uuid.uuid4().hex,
            "tenant": "acme",
            "lead_id": lead_id,
            "event_id": "e-1",
            "campaign": "demo_request",
            "channel": self.name,
            "requested_at": self.clock(),
            "to": "ada@example.com",
            "sender": "",
            "purpose": "marketing",
            "once_per": "event",
            "subject": "Hello",
            "body": "<p>Hello <b>Ada</b></p>",
        }
        return Record(CODEC.encoder("message_request")(record | changes), next(self.offsets))

    async def consume(self, *records: Record) -> list[Output]:
        """Process ``records`` as the batch loop does."""
        requests = self.requests()
        return await outputs_of(requests.apply(requests.prepare(records)))

    async def requested(self, lead_id: str = "", **changes: Any) -> str:
        """Request one message and return its id."""
        message_id: str = changes.setdefault("message_id", uuid.uuid4().hex)
        await self.consume(self.request(lead_id or await self.lead(), **changes))
        return message_id

    async def row(self, message_id: str) -> Any:
        return await self.pool.fetchrow("SELECT * FROM messages_sent WHERE message_id = $1", message_id)

    async def stats(self) -> dict[str, int]:
        stats: dict[str, int] = (await self.http.get("/_simulator/stats")).json()
        return stats

    async def mails(self) -> list[dict[str, Any]]:
        mails: list[dict[str, Any]] = (await self.http.get("/_simulator/messages?limit=1000")).json()["messages"]
        return mails

    async def faults(self, **faults: Any) -> None:
        await self.http.post("/_simulator/faults", json=faults)

    def reported(self) -> list[tuple[str, str]]:
        return [(outcome["what"], outcome["reason"]) for outcome in self.outcomes]


@pytest.fixture
async def world(stack: Any, tmp_path: Path) -> AsyncIterator[World]:
    serving = asyncio.create_task(simulator.serve("127.0.0.1", 0, tmp_path))
    async with asyncio.timeout(20):
        while not (tmp_path / "smtp_port").exists():  # noqa: ASYNC110 - a file has no event
            await asyncio.sleep(0.01)
    pool = await connect(stack.dsn, size=16, application="tests")
    http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{(tmp_path / 'http_port').read_text()}")
    world = World(pool, int((tmp_path / "smtp_port").read_text()), http)
    yield world
    for channel in world.channels:
        await channel.close()
    await http.aclose()
    await pool.close()
    serving.cancel()
    with suppress(asyncio.CancelledError):
        await serving
