"""From a campaign signal to one mail: the two real processes with a real broker, also when they are killed."""

from __future__ import annotations

import asyncio
import random
import signal as signals
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from confluent_kafka import Consumer

from infra.clock import now_us
from infra.kafka.producer import Deliverer, Output
from infra.settings import child_environment
from schemas.codec import Codec
from tests.conftest import eventually

pytestmark = [pytest.mark.integration, pytest.mark.chaos]
CODEC = Codec()
CAMPAIGNS = Path(__file__).parents[3] / "campaigns"


class Process:
    """A worker process that the test can end and start again."""

    def __init__(self, environment: dict[str, str], *words: str) -> None:
        self._environment = child_environment(environment)
        self._words = words
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *self._words, env=self._environment, stdout=asyncio.subprocess.DEVNULL
        )

    async def end(self, number: int = signals.SIGTERM) -> int:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(number)
        return await asyncio.wait_for(self._process.wait(), 60)


@asynccontextmanager
async def workers(stack: Any, world: Any, **settings: str) -> AsyncIterator[tuple[Process, Process]]:
    environment = stack.environment(
        LEADSTREAM_CHANNEL_EMAIL_URL=f"smtp://127.0.0.1:{world.smtp_port}",
        LEADSTREAM_CHANNEL_EMAIL_LEASE_S="5",
        LEADSTREAM_CHANNEL_EMAIL_TIMEOUT_S="2.5",
        LEADSTREAM_CAMPAIGNS_DIR=str(CAMPAIGNS),
        **settings,
    )
    both = Process(environment, "streams.campaigns"), Process(environment, "sinks", "messages", "email")
    for process in both:
        await process.start()
    try:
        yield both
    finally:
        for process in both:
            await process.end(signals.SIGKILL)


@pytest.fixture
async def signal(stack: Any) -> AsyncIterator[Callable[..., Any]]:
    """Return a function that publishes campaign signals of leads, as intake does."""
    deliverer = Deliverer(stack.settings, "test")

    async def put(*leads: str, event_id: str = "", times: int = 1, **fields: Any) -> None:
        outputs = [
            Output("leads.campaign-signals", lead.encode(), _signal(lead, event_id or f"e-{lead}", **fields))
            for lead in leads
        ]
        for _ in range(times):
            await deliverer.deliver(outputs)

    yield put
    await deliverer.close()


def _signal(lead_id: str, event_id: str, **lead: Any) -> bytes:
    now = now_us()  # campaigns skip old events
    known = {"lead_id": lead_id, "tenant": "acme", "version": 1, "created_at": now, "updated_at": now}
    return CODEC.encoder("campaign_signal")(
        {
            "tenant": "acme",
            "event_id": event_id,
            "event_type": "form_submitted",
            "occurred_at": now,
            "decided_at": now,
            "properties": orjson.dumps({"form_id": "demo", "answers": {}}).decode(),
            "lead": orjson.dumps(known | {"email": f"{lead_id}@example.com", "first_name": "Ada"} | lead).decode(),
        }
    )


def outcomes_of(stack: Any, leads: set[str]) -> dict[tuple[str, str, str], int]:
    """Count the outcomes of ``leads`` by stage, what and reason; repeated outcomes of one record count once."""
    client = {"bootstrap.servers": stack.kafka_bootstrap, "group.id": uuid.uuid4().hex, "enable.partition.eof": True}
    consumer = Consumer(client | {"auto.offset.reset": "earliest", "enable.auto.commit": False})
    found: set[tuple[Any, ...]] = set()
    ends = len(consumer.list_topics("leads.outcomes").topics["leads.outcomes"].partitions)
    consumer.subscribe(["leads.outcomes"])
    while ends:
        for message in consumer.consume(1000, 1):
            if message.error() is not None:
                ends -= 1
                continue
            outcome = CODEC.decode(message.value()).record
            if outcome["lead_id"] in leads:
                names = ("stage", "what", "reason", "topic", "partition", "offset")
                found.add(tuple(outcome[name] for name in names))
    consumer.close()
    counted: dict[tuple[str, str, str], int] = {}
    for stage, what, reason, *_ in found:
        counted[stage, what, reason] = counted.get((stage, what, reason), 0) + 1
    return counted


async def test_repeated_signals_become_one_mail(stack: Any, world: Any, signal: Any) -> None:
    lead, silent = await world.lead(), await world.lead()
    async with workers(stack, world) as (campaigns, delivery):
        await signal(lead, times=3)
        await signal(lead, event_id="another demo request")
        await signal(silent, consent={"marketing": "withdrawn"})
        last = await world.lead()
        await signal(last)
        await eventually(lambda: _mails_to(world, lead, last))
        # Restarted workers, the same signal again, and new ones of the same leads.
        assert (await campaigns.end(), await delivery.end()) == (0, 0)
        await campaigns.start()
        await delivery.start()
        await signal(lead, last, event_id="much later")
        later = await world.lead()
        await signal(later)
        await eventually(lambda: _mails_to(world, lead, last, later))
        assert (await campaigns.end(), await delivery.end()) == (0, 0)
    stats = await world.stats()
    assert (stats["messages"], stats["duplicates"]) == (3, 0)
    assert {mail["to"][0] for mail in await world.mails()} == {f"{each}@example.com" for each in (lead, last, later)}
    outcomes = outcomes_of(stack, {lead, silent, last, later})
    assert outcomes["messages-email", "sent", ""] == 3
    assert outcomes["campaigns", "skipped", "no_consent"] == 1
    assert outcomes["messages-email", "skipped", "already_asked"] >= 3


@pytest.mark.parametrize("when_unsure", ["again", "hold"])
async def test_after_repeated_kills_every_mail_is_accounted_for(
    stack: Any, world: Any, signal: Any, when_unsure: str
) -> None:
    chance = random.Random(7)
    leads = [await world.lead() for _ in range(300)]
    await world.faults(latency_ms=5)
    async with workers(stack, world, LEADSTREAM_CHANNEL_EMAIL_WHEN_UNSURE=when_unsure) as (campaigns, delivery):
        for start in range(0, 300, 60):
            await signal(*leads[start : start + 60])
            goal = start + chance.randrange(10, 50)
            await eventually(partial(_finished, world, leads, goal))
            victim = delivery if start % 120 == 0 else campaigns
            await victim.end(signals.SIGKILL)
            await victim.start()
        await eventually(lambda: _finished(world, leads, 300), 120)
    rows = await world.pool.fetch(
        "SELECT state, last_error, count(*) FROM messages_sent WHERE lead_id = ANY($1::uuid[]) GROUP BY 1, 2", leads
    )
    counted = {(row["state"], row["last_error"]): row["count"] for row in rows}
    sent, unsure = counted.get(("sent", ""), 0), counted.get(("failed", "unsure"), 0)
    stats = await world.stats()
    open_at_kills = 3 * 4  # kills times connections
    assert sent + unsure == 300, counted
    if when_unsure == "again":  # no mail is missing
        assert (unsure, stats["unique"]) == (0, 300)
        assert stats["duplicates"] <= open_at_kills
    else:  # no mail is sent twice
        assert stats["duplicates"] == 0
        assert sent <= stats["messages"] <= sent + unsure
        assert unsure <= open_at_kills


async def _mails_to(world: Any, *leads: str) -> bool:
    return {f"{lead}@example.com" for lead in leads} <= {mail["to"][0] for mail in await world.mails()}


async def _finished(world: Any, leads: list[str], count: int) -> bool:
    done = await world.pool.fetchval(
        "SELECT count(*) FROM messages_sent WHERE lead_id = ANY($1::uuid[]) AND request IS NULL", leads
    )
    return bool(done >= count)
