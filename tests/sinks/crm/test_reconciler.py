"""What is wanted arrives in the CRM, over a real Postgres and HubSpot's simulator."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from infra.errors import DependencyUnavailable, Verdict
from infra.kafka.producer import Output
from infra.outcomes import Reason, What
from infra.postgres.leased_rows import Done, Parked
from infra.runtime import Stop
from sinks.crm import Synced, SyncFailed, SyncResult
from sinks.crm.sync_table import RecordWritten
from tests.conftest import eventually
from tests.sinks.crm.fake import FakeCrm

START = 1_770_000_000_000_000

pytestmark = pytest.mark.integration


async def test_a_burst_of_edits_is_one_call_with_the_newest_snapshot(world: Any) -> None:
    lead_id = await world.lead(email="ada@example.com", title="Analyst")
    for version in range(2, 101):
        await world.want(lead_id, version)
    await world.write(lead_id, 100, email="ada@example.com", title="Countess")

    assert await world.sync().once() == 1
    assert await world.sync().once() == 0

    assert (await world.stats())["calls"] == 1
    assert (await world.contact(lead_id))["jobtitle"] == "Countess"
    row = await world.row(lead_id)
    assert (row["wanted_version"], row["synced_version"], row["attempts"]) == (100, 100, 0)
    assert row["remote_id"] == "1"
    assert [(o["what"], o["lead_id"], o["version"]) for o in world.outcomes] == [("synced", lead_id, 100)]


async def test_a_hundred_leads_are_one_call(world: Any) -> None:
    for i in range(100):
        await world.lead(email=f"person{i}@example.com")
    assert await world.sync().once() == 100
    stats = await world.stats()
    assert (stats["calls"], stats["records"]) == (1, 100)


async def test_a_rejected_lead_is_parked_alone_until_a_newer_version_is_wanted(world: Any) -> None:
    good = [await world.lead(email=f"person{i}@example.com") for i in range(5)]
    bad = await world.lead(email="not an address")
    sync = world.sync()
    await sync.once()

    assert all([(await world.row(lead_id))["synced_version"] == 1 for lead_id in good])
    row = await world.row(bad)
    assert (row["synced_version"], row["attempts"], row["last_error"]) == (0, 1, "rejected")
    assert row["remote_id"] == ""
    parked = [o for o in world.outcomes if o["what"] == "parked"]
    assert [(o["lead_id"], o["reason"], o["detail"]) for o in parked] == [(bad, "rejected", "INVALID_EMAIL")]

    world.clock.forward(10 * 365 * 86_400)
    assert await sync.once() == 0
    await world.want(bad, 1)  # a redelivery of the same request
    assert await sync.once() == 0
    await world.lead(bad, 2, email="a@example.com")
    assert await sync.once() == 1
    assert (await world.row(bad))["last_error"] == ""


async def test_a_newer_version_wanted_during_a_rejected_call_is_tried_at_once(world: Any) -> None:
    gate = asyncio.Event()
    crm = FakeCrm(lambda s: SyncFailed(Verdict.DEAD, Reason.REJECTED) if s.version == 1 else Synced("1"), gate)
    lead_id = await world.lead()
    first = asyncio.create_task(world.sync(crm).once())
    await eventually(lambda: bool(crm.sent))
    await world.lead(lead_id, 2)
    gate.set()
    await first
    await world.sync(crm).once()
    assert crm.sent == [(lead_id, 1), (lead_id, 2)]
    assert (await world.row(lead_id))["synced_version"] == 2


async def test_trouble_with_one_lead_backs_off_and_is_reported_once(world: Any) -> None:
    answers: dict[str, SyncResult] = {}
    crm = FakeCrm(lambda s: answers.get(s.lead_id, Synced("1")))
    stuck, fine = await world.lead(), await world.lead()
    answers[stuck] = SyncFailed(Verdict.RETRY, Reason.CONFLICT)
    sync = world.sync(crm)
    waits = []
    for _ in range(12):
        await sync.once()
        waits.append(((await world.row(stuck))["next_attempt_at"] - world.clock()) / 1e6)
        world.clock.forward(waits[-1])
    assert [round(w, 1) for w in waits] == [0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert crm.sent.count((fine, 1)) == 1
    assert [o["reason"] for o in world.outcomes if o["lead_id"] == stuck] == ["conflict"]
    answers.clear()
    await sync.once()
    assert (await world.row(stuck))["attempts"] == 0


async def test_an_older_version_never_follows_a_newer_one(world: Any) -> None:
    lead_id = await world.lead(version=5, email="a@example.com")
    await world.sync().once()
    for version in (3, 5, 4):
        await world.want(lead_id, version)
    assert await world.sync().once() == 0
    row = await world.row(lead_id)
    assert (row["wanted_version"], row["synced_version"]) == (5, 5)


async def test_a_record_behind_what_was_announced_is_not_sent(world: Any) -> None:
    lead_id = await world.lead(version=2)
    await world.want(lead_id, 3)
    crm = FakeCrm()
    await world.sync(crm).once()
    assert crm.sent == []
    assert (await world.row(lead_id))["last_error"] == "unavailable"


async def test_what_was_sent_counts_even_if_it_is_newer_than_what_was_wanted(world: Any) -> None:
    lead_id = await world.lead(version=1)
    await world.write(lead_id, 7)
    crm = FakeCrm()
    await world.sync(crm).once()
    await world.want(lead_id, 7)
    assert await world.sync(crm).once() == 0
    assert crm.sent == [(lead_id, 7)]


async def test_a_crash_between_claim_and_write_back_frees_the_lead_when_the_lease_ends(world: Any) -> None:
    lead_id = await world.lead(email="a@example.com")
    table = world.table()
    crashed = await table.claim(100)
    (claimed,) = crashed.rows
    assert claimed.key == lead_id
    assert await world.sync().once() == 0
    world.clock.forward(61)
    assert await world.sync().once() == 1
    # The late worker comes back: it may write what it sent, and disturbs nothing else.
    assert not await table.park(crashed, [(claimed, Parked(Reason.TIMEOUT), world.clock())])
    await table.finish(crashed, [(claimed, Done(What.SYNCED, version=1, value=RecordWritten("1")))])
    row = await world.row(lead_id)
    assert (row["synced_version"], row["attempts"], row["last_error"]) == (1, 0, "")


async def test_two_workers_never_have_a_lead_in_two_calls(world: Any) -> None:
    gate = asyncio.Event()
    crm = FakeCrm(gate=gate)
    leads = [await world.lead() for _ in range(250)]
    stop = Stop()
    workers = [asyncio.create_task(world.sync(crm).run(stop)) for _ in range(2)]
    await eventually(lambda: len(crm.sent) == 250)
    for lead_id in leads:  # more edits while all are in a call
        await world.lead(lead_id, 2)
    world.wake.set()
    gate.set()
    await eventually(lambda: len(crm.sent) == 500)
    stop.request()
    await asyncio.gather(*workers)
    assert crm.most_at_once == 1
    assert Counter(crm.sent) == {(lead_id, version): 1 for lead_id in leads for version in (1, 2)}


@pytest.mark.parametrize(("limits", "reason", "seconds"), [({"per_10s": 0}, "rate", 10), ({"daily": 0}, "day", 900)])
async def test_a_limit_stops_the_whole_sink_and_costs_no_lead_an_attempt(
    world: Any, limits: dict[str, int], reason: str, seconds: int
) -> None:
    leads = [await world.lead(email=f"person{i}@example.com") for i in range(3)]
    await world.set("limits", **limits)
    sync = world.sync()
    await sync.once()
    rows = [await world.row(lead_id) for lead_id in leads]
    assert {(row["attempts"], row["last_error"]) for row in rows} == {(0, "")}, reason
    calls = (await world.stats())["calls"]
    await world.set("limits", per_10s=100, daily=100)
    world.clock.forward(seconds - 1)
    assert await sync.once() == 0
    assert (await world.stats())["calls"] == calls
    world.clock.forward(1)
    assert await sync.once() == 3
    assert world.outcomes[-1]["what"] == "synced"


async def test_a_crm_that_is_down_gets_few_calls_and_everything_once_it_is_back(world: Any) -> None:
    for i in range(250):
        await world.lead(email=f"person{i}@example.com")
    await world.set("faults", status=500)
    sync = world.sync()
    await sync.once()
    assert await sync.once() == 0  # paused
    await world.set("faults")
    for _ in range(10):
        world.clock.forward(5)
        await sync.once()
    assert (await world.stats())["records"] == 250


async def test_an_outcome_that_cannot_be_delivered_does_not_lose_the_sync(world: Any) -> None:
    failures = 3

    async def emit(outputs: Sequence[Output]) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise DependencyUnavailable("Kafka", "test")
        await deliver(outputs)

    deliver, world.emit = world.emit, emit
    lead_id = await world.lead(email="a@example.com")
    stop = Stop()
    worker = asyncio.create_task(world.sync().run(stop))
    await eventually(lambda: bool(world.outcomes))
    stop.request()
    await worker
    assert (await world.row(lead_id))["synced_version"] == 1
    assert failures == 0


async def test_a_call_that_never_ends_is_given_up_within_the_lease(world: Any) -> None:
    lead_id = await world.lead()
    crm = FakeCrm(gate=asyncio.Event())
    await world.sync(crm, lease_s=0.2).once()
    row = await world.row(lead_id)
    assert (row["attempts"], row["last_error"]) == (1, "timeout")
