"""Open requests are repeated until they are answered, refused or expired; each change of state has one outcome."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from infra.kafka.outcome_records import OutcomeRecords
from infra.outcomes import Reason
from infra.retry import Retry
from infra.runtime import Status, Stop
from streams.enrichment.providers import Found, LookupFailed, NotFound
from streams.enrichment.work import expire
from tests.conftest import eventually
from tests.streams.enrichment.conftest import CODEC, DAY_S, START, World
from tests.streams.enrichment.test_waterfall import Scripted

pytestmark = pytest.mark.integration
DOWN = LookupFailed(Reason.UNAVAILABLE, detail="status 503")


async def test_a_request_is_repeated_until_the_lead_is_found_and_then_its_row_is_deleted(world: World) -> None:
    lead = await world.lead()
    await world.add(lead)
    provider = Scripted("a", DOWN, DOWN, LookupFailed(Reason.TIMEOUT), Found({"title": "CTO"}))
    work = world.work(provider)
    waits = []
    for _ in range(4):
        assert await work.once() == 1
        assert await work.once() == 0, "not due before its backoff is over"
        for row in await world.rows():
            waits.append((row["next_attempt_at"] - world.clock()) / 1e6)
            world.clock.now = row["next_attempt_at"]
    assert waits == [5, 10, 20]
    assert await world.rows() == []
    assert world.reported() == [("e-1", "parked", "timeout"), ("e-1", "enriched", "")], "one a new reason"
    [event] = world.events()
    assert (event["title"], event["identifiers"]["email"]) == ("CTO", f"{lead}@example.com")


@pytest.mark.parametrize(
    ("result", "reason"), [(NotFound(), "not_found"), (LookupFailed(Reason.REJECTED, detail="status 400"), "rejected")]
)
async def test_not_found_and_refused_end_a_request(world: World, result: Any, reason: str) -> None:
    await world.add(await world.lead())
    provider = Scripted("a", result)
    work = world.work(provider)
    assert await work.once() == 1
    assert await world.rows() == []
    assert world.reported() == [("e-1", "skipped", reason)]
    world.clock.forward(DAY_S)
    await work.once()
    assert provider.calls == 1


async def test_a_row_holds_no_personal_data_and_an_erased_lead_is_not_looked_up(world: World) -> None:
    lead = await world.lead(first_name="Ada", phone="+442079460000")
    await world.add(lead)
    [row] = await world.rows()
    assert not any(word in str(row) for word in ("example.com", "Ada", "7946"))
    await world.pool.execute("UPDATE leads SET erased_at = $2 WHERE lead_id = $1", lead, START)
    provider = Scripted("a", Found({"title": "CTO"}))
    await world.work(provider).once()
    assert (provider.calls, await world.rows(), world.events()) == (0, [], [])
    assert world.reported() == [("e-1", "skipped", "erased")]


async def test_the_request_of_an_event_after_the_erasure_is_answered(world: World) -> None:
    lead = await world.lead()
    await world.pool.execute("UPDATE leads SET erased_at = $2 WHERE lead_id = $1", lead, START)
    await world.pool.execute(
        "INSERT INTO lead_history (lead_id, version, month, decided_at, tenant, event_id, event_type, source, "
        "occurred_at, changes) VALUES ($1, 2, date_trunc('month', now())::date, $2, 'acme', 'e-1', 'form_submitted', "
        "'web', $2, '{}')",
        lead,
        START + 1,
    )
    await world.add(lead)
    await world.work(Scripted("a", Found({"title": "CTO"}))).once()
    assert world.reported() == [("e-1", "enriched", "")]


async def test_a_merged_lead_is_looked_up_as_its_survivor_and_an_unknown_one_is_not(world: World) -> None:
    survivor, loser = await world.lead(email="new@example.com"), str(uuid.uuid4())
    await world.pool.execute("INSERT INTO lead_aliases (alias_id, lead_id) VALUES ($1, $2)", loser, survivor)
    await world.add(loser)
    await world.add(str(uuid.uuid4()), "e-2")
    await world.work(Scripted("a", Found({"title": "CTO"}))).once()
    assert sorted(world.reported()) == [("e-1", "enriched", ""), ("e-2", "skipped", "erased")]
    assert world.events()[0]["identifiers"]["email"] == "new@example.com"


async def test_an_expired_request_is_reported_whether_or_not_a_provider_is_available(world: World) -> None:
    await world.add(await world.lead())
    world.clock.forward(3 * DAY_S)
    provider = Scripted("a", Found({}))
    await world.work(provider).once()
    assert (provider.calls, await world.rows()) == (0, [])
    assert world.reported() == [("e-1", "skipped", "expired")]
    for n in range(3):
        await world.add(await world.lead(), f"s-{n}")
    stop = Stop()
    records = OutcomeRecords("enrichment", CODEC.encoder("outcome"), world.clock)
    retry = Retry("enrichment", Status())
    sweep = asyncio.create_task(expire(world.table(), records, world.deliver, retry=retry, stop=stop, every_s=0.05))
    await asyncio.sleep(0.3)
    assert len(await world.rows()) == 3, "not expired yet"
    world.clock.forward(3 * DAY_S)
    await eventually(lambda: len(world.reported()) == 4)
    stop.request()
    await sweep
    assert await world.rows() == []
    assert sorted(world.reported()[1:]) == [(f"s-{n}", "skipped", "expired") for n in range(3)]


async def test_a_newer_request_replaces_the_row_even_while_it_is_claimed(world: World) -> None:
    lead = await world.lead()
    assert await world.add(lead, "e-1", 1) is None
    assert await world.add(lead, "e-1", 1) is None, "a redelivery"
    claimed = await world.table().claim(1)
    earlier = await world.add(lead, "e-2", 5)
    assert earlier is not None
    assert (earlier.event_id, earlier.version) == ("e-1", 1)
    assert await world.table().finish(claimed, [(claimed.rows[0], Any)]) == set()  # type: ignore[list-item]
    stale = await world.add(lead, "e-1", 1)
    assert stale is not None
    assert stale.event_id == "e-2"
    [row] = await world.rows()
    assert (row["event_id"], row["version"]) == ("e-2", 5)


async def test_two_workers_repeat_each_request_once(world: World) -> None:
    leads = [await world.lead() for _ in range(60)]
    for n, lead in enumerate(leads):
        await world.add(lead, f"e-{n}")
    providers = [Scripted("a", Found({"title": "CTO"})) for _ in range(2)]
    workers = [world.work(provider) for provider in providers]
    while await world.rows():
        await asyncio.gather(*(worker.once() for worker in workers))
    assert sum(provider.calls for provider in providers) == 60
    assert all(provider.calls for provider in providers)
    assert sorted(world.reported()) == sorted((f"e-{n}", "enriched", "") for n in range(60))
    assert len({event["envelope"]["event_id"] for event in world.events()}) == 60


async def test_a_row_that_is_not_called_for_keeps_its_attempts_and_is_due_when_the_breaker_admits_a_probe(
    world: World,
) -> None:
    for n in range(20):
        await world.add(await world.lead(), f"e-{n}")
    provider = Scripted("a", *[DOWN] * 5, Found({"title": "CTO"}))
    work = world.work(provider, in_flight=1)
    while await work.once():
        pass
    rows = await world.rows()
    assert (len(rows), sum(row["attempts"] for row in rows), provider.calls) == (20, 5, 5)
    assert all(row["next_attempt_at"] <= world.clock() + 45_000_000 for row in rows)
    while await world.rows():
        world.clock.forward(5)
        while await work.once():
            pass
    assert world.clock() <= START + 60_000_000
    assert sorted(world.reported()) == sorted((f"e-{n}", "enriched", "") for n in range(20))


async def test_a_request_repeated_after_a_crash_gives_the_same_event(world: World) -> None:
    lead = await world.lead()
    await world.add(lead)
    provider = Scripted("a", Found({"title": "CTO"}))
    await world.work(provider).once()
    await world.add(lead)  # as if the row had not been deleted
    await world.work(provider).once()
    first, second = world.events()
    assert first == second
