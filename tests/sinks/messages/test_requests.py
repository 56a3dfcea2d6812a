"""Which requests become messages, and which messages are skipped."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from tests.events import CODEC

pytestmark = pytest.mark.integration


async def test_a_repeated_request_sends_no_second_message(world: Any) -> None:
    lead_id, message_id = await world.lead(), uuid.uuid4().hex
    first = world.request(lead_id, message_id=message_id)
    assert await world.consume(first, first) == []
    await world.delivery().once()
    assert await world.consume(first) == []
    (skipped,) = await world.consume(world.request(lead_id, message_id=message_id, event_id="e-2"))
    await world.emit([skipped])
    assert world.reported() == [("sent", ""), ("skipped", "already_asked")]
    assert world.outcomes[1]["event_id"] == "e-2"
    assert await world.delivery().once() == 0
    assert (await world.stats())["messages"] == 1


async def test_consent_withdrawn_after_the_request_is_respected_also_for_a_merged_lead(world: Any) -> None:
    lead_id, survivor = await world.lead(), await world.lead()
    first, second = await world.requested(lead_id), await world.requested(lead_id)
    await world.lead(lead_id, consent={"sales": "withdrawn"})
    await world.delivery(max_connections=1).once()
    assert (await world.row(first))["state"] == "sent"
    await world.pool.execute("INSERT INTO lead_aliases (alias_id, lead_id) VALUES ($1, $2)", lead_id, survivor)
    await world.lead(survivor, consent={"marketing": "withdrawn"})
    await world.delivery().once()
    row = await world.row(second)
    assert (row["state"], row["request"]) == ("skipped", None)
    assert world.reported() == [("sent", ""), ("skipped", "no_consent")]
    assert (await world.stats())["messages"] == 1


async def test_an_erased_lead_gets_nothing(world: Any) -> None:
    message_id = await world.requested(str(uuid.uuid4()))
    await world.delivery().once()
    assert world.reported() == [("skipped", "erased")]
    assert (await world.row(message_id))["request"] is None


async def test_an_erasure_cancels_waiting_messages_but_not_later_requests(world: Any) -> None:
    lead_id, minute = await world.lead(), 60_000_000
    await world.add_history(lead_id, "before", world.clock() - 2 * minute)
    await world.add_history(lead_id, "after", world.clock() + minute)
    before = await world.requested(lead_id, event_id="before")
    await world.faults(code=451)
    await world.delivery().once()
    await world.lead(lead_id, erased_at=world.clock())
    after = await world.requested(lead_id, event_id="after")
    await world.faults()
    world.clock.forward(3600)
    await world.delivery().once()
    assert sorted(world.reported()) == [("parked", "unavailable"), ("sent", ""), ("skipped", "erased")]
    assert [(await world.row(m))["state"] for m in (before, after)] == ["skipped", "sent"]
    assert (await world.row(before))["request"] is None


async def test_once_per_lead_also_holds_for_merged_leads(world: Any) -> None:
    mailed, other, survivor = [await world.lead() for _ in range(3)]

    async def skipped(*leads: tuple[str, str], **changes: Any) -> list[tuple[str, str]]:
        requests = [
            world.request(lead, event_id=event, **{"message_id": f"{world.name}-{lead}", "once_per": "lead"} | changes)
            for lead, event in leads
        ]
        outcomes = [CODEC.decode(output.value or b"").record for output in await world.consume(*requests)]
        return [(outcome["event_id"], outcome["reason"]) for outcome in outcomes]

    assert await skipped((mailed, "e-1")) == []
    for loser in (mailed, other):
        await world.pool.execute("INSERT INTO lead_aliases (alias_id, lead_id) VALUES ($1, $2)", loser, survivor)
    assert await skipped((survivor, "e-2"), (other, "e-3")) == [("e-2", "already_asked"), ("e-3", "already_asked")]
    assert await skipped((mailed, "e-1"), (mailed, "e-4")) == [("e-4", "already_asked")]
    assert await skipped((survivor, "e-5"), campaign="another", message_id=f"{world.name}-5") == []
    assert await skipped((survivor, "e-6"), once_per="event", message_id=f"{world.name}-6") == []
    await world.delivery().once()
    assert (await world.stats())["messages"] == 3

    one, two = await world.lead(), await world.lead()
    await world.pool.execute("INSERT INTO lead_aliases (alias_id, lead_id) VALUES ($1, $2)", one, two)
    assert await skipped((one, "e-7"), (two, "e-8")) == [("e-8", "already_asked")]


async def test_invalid_requests_are_dead_and_those_of_other_channels_are_ignored(world: Any) -> None:
    lead_id = await world.lead()
    good, other = world.request(lead_id), world.request(lead_id, channel="slack")
    bad = [type(good)(value, 1) for value in (None, b"x", world.request("no-uuid").value())]
    bad += [world.request(lead_id, event_id="a\0b"), world.request(lead_id, requested_at=2**62)]
    outputs = await world.consume(good, other, *bad)
    assert [output.topic for output in outputs] == ["leads.dead"] * 5
    assert await world.pool.fetchval("SELECT count(*) FROM messages_sent WHERE channel = $1", world.name) == 1
    assert await world.pool.fetchval("SELECT count(*) FROM messages_sent WHERE channel = 'slack'") == 0
