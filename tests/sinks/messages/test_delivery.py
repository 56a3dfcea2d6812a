"""What is asked for is sent, over a real Postgres and a real SMTP conversation, whatever happens in between."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from infra.errors import DependencyAway
from infra.outcomes import Reason
from infra.runtime import Stop
from sinks.messages import Channel, HandingOver, Message, Result
from sinks.messages.store import Claim, Store
from tests.conftest import eventually
from tests.events import CODEC

pytestmark = pytest.mark.integration


class Crash(Exception):  # noqa: N818
    """The process ends here."""


class Crashing:
    """A real channel whose process ends right before or right after the provider has the message."""

    name = "email"

    def __init__(self, inner: Channel, when: str, dedupes: bool = False) -> None:
        self.inner = inner
        self.when = when
        self.dedupes = dedupes

    async def send(self, message: Message, handing_over: HandingOver) -> Result:
        if self.when == "before":
            raise Crash
        result = await self.inner.send(message, handing_over)
        if self.when == "after":
            raise Crash
        return result

    async def close(self) -> None:
        return


async def test_a_message_is_sent_and_its_words_are_forgotten(world: Any) -> None:
    message_id = await world.ask()
    assert "Ada" in str((await world.row(message_id))["request"])
    assert await world.delivery().once() == 1
    assert await world.delivery().once() == 0

    (mail,) = await world.mails()
    assert mail["message_id"] == f"<{message_id}@example.com>"
    row = await world.row(message_id)
    assert (row["state"], row["attempts"], row["last_error"], row["request"]) == ("sent", 1, "", None)
    assert "queued as Q" in row["provider_id"]
    assert row["sent_at"] is not None
    (outcome,) = world.outcomes
    assert (outcome["what"], outcome["event_id"], outcome["detail"]) == ("sent", "e-1", "demo_request")
    assert (outcome["topic"], outcome["offset"]) == ("leads.messages-requested", row["offset"])


async def test_asking_again_sends_nothing_again(world: Any) -> None:
    lead_id, message_id = await world.lead(), uuid.uuid4().hex
    first = world.request(lead_id, message_id=message_id)
    assert await world.take(first, first) == []
    await world.delivery().once()
    assert await world.take(first) == []
    (told,) = await world.take(world.request(lead_id, message_id=message_id, event_id="e-2"))
    await world.emit([told])
    assert world.told() == [("sent", ""), ("skipped", "already_asked")]
    assert world.outcomes[1]["event_id"] == "e-2"
    assert await world.delivery().once() == 0
    assert (await world.stats())["messages"] == 1


async def test_a_crash_before_handing_over_costs_nothing(world: Any) -> None:
    message_id = await world.ask()
    with pytest.raises(Crash):
        await world.delivery(Crashing(world.channel(), "before")).once()
    assert (await world.row(message_id))["state"] == "claimed"
    assert await world.delivery().once() == 0  # still leased
    world.clock.forward(301)
    assert await world.delivery().once() == 1
    assert await world.stats() == {"messages": 1, "unique": 1, "duplicates": 0, "refused": 0}
    assert world.told() == [("sent", "")]


async def test_who_would_rather_not_send_than_send_twice_has_it_held_after_such_a_crash(world: Any) -> None:
    message_id = await world.ask()
    with pytest.raises(Crash):
        await world.delivery(Crashing(world.channel(), "after")).once()
    assert (await world.row(message_id))["state"] == "sending"
    world.clock.forward(301)
    await world.delivery(when_unsure="hold").once()
    assert await world.stats() == {"messages": 1, "unique": 1, "duplicates": 0, "refused": 0}
    row = await world.row(message_id)
    assert (row["state"], row["last_error"], row["request"]) == ("failed", "unsure", None)
    assert world.told() == [("dead", "unsure")]


async def test_what_is_unsure_stays_so_crash_after_crash(world: Any) -> None:
    message_id = await world.ask()
    with pytest.raises(Crash):
        await world.delivery(Crashing(world.channel(), "after")).once()
    world.clock.forward(301)
    assert len(await world.store().claim(1)) == 1  # and the process ends before it does anything about it
    world.clock.forward(301)
    await world.delivery(when_unsure="hold").once()
    assert (await world.row(message_id))["last_error"] == "unsure"
    assert (await world.stats())["messages"] == 1


async def test_what_is_given_back_is_due_again_and_as_sure_as_before(world: Any) -> None:
    store, message_id = world.store(), await world.ask()
    (claim,) = await store.claim(1)
    assert await store.given_back(claim, world.clock())
    assert (await world.row(message_id))["state"] == "waiting"
    (claim,) = await store.claim(1)
    assert await store.sending(claim)
    world.clock.forward(301)
    (claim,) = await store.claim(1)
    assert claim.unsure
    assert await store.given_back(claim, world.clock())
    (claim,) = await store.claim(1)
    assert claim.unsure
    assert claim.attempts == 0


async def test_a_crash_between_send_and_mark_sends_it_again_with_the_same_message_id(world: Any) -> None:
    await world.ask()
    with pytest.raises(Crash):
        await world.delivery(Crashing(world.channel(), "after")).once()
    world.clock.forward(301)
    await world.delivery().once()
    assert await world.stats() == {"messages": 2, "unique": 1, "duplicates": 1, "refused": 0}
    assert world.told() == [("sent", "")]


async def test_where_the_provider_dedupes_an_unsure_message_is_sent_again(world: Any) -> None:
    await world.ask()
    with pytest.raises(Crash):
        await world.delivery(Crashing(world.channel(), "after", dedupes=True)).once()
    world.clock.forward(301)
    await world.delivery(Crashing(world.channel(), "", dedupes=True)).once()
    assert world.told() == [("sent", "")]


async def test_a_lost_answer_is_parked_and_the_mail_sent_again_with_the_same_message_id(world: Any) -> None:
    message_id = await world.ask()
    await world.faults(lose=True)
    await world.delivery().once()
    row = await world.row(message_id)
    assert (row["state"], row["attempts"], row["last_error"]) == ("waiting", 1, "unavailable")
    await world.faults()
    world.clock.forward(5.1)
    await world.delivery().once()
    assert world.told() == [("parked", "unavailable"), ("sent", "")]
    assert await world.stats() == {"messages": 2, "unique": 1, "duplicates": 1, "refused": 0}


async def test_a_lost_answer_is_held_where_that_is_wanted(world: Any) -> None:
    message_id = await world.ask()
    await world.faults(lose=True)
    await world.delivery(when_unsure="hold").once()
    assert (await world.row(message_id))["last_error"] == "unsure"
    assert world.told() == [("dead", "unsure")]
    assert (await world.stats())["messages"] == 1


async def test_a_worker_that_lost_its_lease_hands_nothing_over(world: Any) -> None:
    message_id = await world.ask()
    late = asyncio.Event()

    class Late(Crashing):
        async def send(self, message: Message, handing_over: HandingOver) -> Result:
            await late.wait()
            return await super().send(message, handing_over)

    slow = asyncio.create_task(world.delivery(Late(world.channel(), "")).once())
    await eventually(lambda: _state(world, message_id, "claimed"))
    world.clock.forward(301)
    assert await world.delivery().once() == 1
    late.set()
    await slow
    assert await world.stats() == {"messages": 1, "unique": 1, "duplicates": 0, "refused": 0}
    assert world.told() == [("sent", "")]


async def test_two_workers_at_once_send_each_message_once(world: Any) -> None:
    lead_id = await world.lead()
    await world.take(*(world.request(lead_id) for _ in range(120)))
    stop = Stop()
    workers = [asyncio.create_task(world.delivery(max_connections=3, poll_s=0.05).run(stop)) for _ in range(2)]
    await eventually(lambda: _count(world, 120))
    stop.request()
    await asyncio.gather(*workers)
    assert await world.stats() == {"messages": 120, "unique": 120, "duplicates": 0, "refused": 0}
    assert world.told() == [("sent", "")] * 120


async def test_a_temporary_failure_is_parked_alone_and_then_one_mail(world: Any) -> None:
    message_id = await world.ask()
    await world.faults(code=451)
    delivery = world.delivery()
    await delivery.once()
    assert await delivery.once() == 0
    row = await world.row(message_id)
    assert (row["state"], row["attempts"], row["last_error"]) == ("waiting", 1, "unavailable")
    world.clock.forward(5.1)
    await delivery.once()
    assert (await world.row(message_id))["attempts"] == 2
    await world.faults()
    await world.ask()
    assert await delivery.once() == 1  # the other one, at once
    world.clock.forward(10.1)
    assert await delivery.once() == 1
    assert await world.stats() == {"messages": 2, "unique": 2, "duplicates": 0, "refused": 2}
    assert world.told() == [("parked", "unavailable"), ("sent", ""), ("sent", "")]
    assert world.outcomes[0]["detail"] == "demo_request 451 4.3.0"


async def test_many_temporary_failures_end_in_one_mail_each(world: Any) -> None:
    lead_id = await world.lead()
    await world.take(*(world.request(lead_id) for _ in range(40)))
    await world.faults(code=451, share=0.5)
    delivery = world.delivery()
    for _ in range(200):
        await delivery.once()
        world.clock.forward(30)
        if len([what for what, _ in world.told() if what == "sent"]) == 40:
            break
    stats = await world.stats()
    assert (stats["messages"], stats["duplicates"]) == (40, 0)
    assert stats["refused"] > 5


@pytest.mark.parametrize("at", ["rcpt", "data"])
async def test_a_refusal_for_good_is_dead(world: Any, at: str) -> None:
    message_id = await world.ask()
    await world.faults(code=550, at=at)
    await world.delivery().once()
    row = await world.row(message_id)
    assert (row["state"], row["last_error"], row["request"]) == ("failed", "rejected", None)
    assert world.told() == [("dead", "rejected")]


async def test_a_server_that_is_away_rests_the_channel_and_costs_no_message(world: Any) -> None:
    messages = [await world.ask() for _ in range(20)]
    away = world.delivery(max_connections=2, url="smtp://127.0.0.1:1")
    assert await away.once() == 2
    assert await away.once() == 0
    assert sorted([(await world.row(m))["attempts"] for m in messages]) == [0] * 18 + [1] * 2
    assert set(world.told()) == {("parked", "unavailable")}
    world.clock.forward(60)
    back = world.delivery()
    while await back.once():
        pass
    assert await world.stats() == {"messages": 20, "unique": 20, "duplicates": 0, "refused": 0}


async def test_what_was_claimed_ahead_of_a_server_that_is_away_is_given_back_and_costs_no_attempt(world: Any) -> None:
    messages = [await world.ask() for _ in range(20)]
    stop = Stop()
    running = asyncio.create_task(world.delivery(max_connections=2, url="smtp://127.0.0.1:1").run(stop))

    async def none_is_in_hand() -> bool:
        states = [(await world.row(m))["state"] for m in messages]
        return len(world.outcomes) == 2 and set(states) == {"waiting"}

    await eventually(none_is_in_hand)
    stop.request()
    await running
    assert sorted([(await world.row(m))["attempts"] for m in messages]) == [0] * 18 + [1] * 2


async def test_asked_to_stop_it_finishes_what_it_has_begun_and_gives_the_rest_back(world: Any) -> None:
    messages = [await world.ask() for _ in range(12)]
    stop, begun, go_on = Stop(), asyncio.Event(), asyncio.Event()

    class Slow(Crashing):
        async def send(self, message: Message, handing_over: HandingOver) -> Result:
            begun.set()
            await go_on.wait()
            return await super().send(message, handing_over)

    running = asyncio.create_task(world.delivery(Slow(world.channel(), ""), max_connections=2).run(stop))
    await begun.wait()
    stop.request()
    go_on.set()
    await running
    states = sorted([(await world.row(m))["state"] for m in messages])
    assert states == ["sent"] * 2 + ["waiting"] * 10
    assert world.told() == [("sent", "")] * 2
    assert (await world.stats())["messages"] == 2


async def test_consent_withdrawn_while_it_waited_is_respected_also_by_a_merged_lead(world: Any) -> None:
    lead_id, survivor = await world.lead(), await world.lead()
    first, second = await world.ask(lead_id), await world.ask(lead_id)
    await world.lead(lead_id, consent={"sales": "withdrawn"})
    await world.delivery(max_connections=1).once()
    assert (await world.row(first))["state"] == "sent"
    await world.pool.execute("INSERT INTO lead_aliases (alias_id, lead_id) VALUES ($1, $2)", lead_id, survivor)
    await world.lead(survivor, consent={"marketing": "withdrawn"})
    await world.delivery().once()
    row = await world.row(second)
    assert (row["state"], row["request"]) == ("skipped", None)
    assert world.told() == [("sent", ""), ("skipped", "no_consent")]
    assert (await world.stats())["messages"] == 1


async def test_an_erased_lead_gets_nothing(world: Any) -> None:
    message_id = await world.ask(str(uuid.uuid4()))
    await world.delivery().once()
    assert world.told() == [("skipped", "erased")]
    assert (await world.row(message_id))["request"] is None


async def test_an_erasure_takes_what_waits_but_not_what_is_asked_for_later(world: Any) -> None:
    lead_id, minute = await world.lead(), 60_000_000
    await world.happened(lead_id, "before", world.clock() - 2 * minute)
    await world.happened(lead_id, "after", world.clock() + minute)
    before = await world.ask(lead_id, event_id="before")
    await world.faults(code=451)
    await world.delivery().once()
    await world.lead(lead_id, erased_at=world.clock())
    after = await world.ask(lead_id, event_id="after")
    await world.faults()
    world.clock.forward(3600)
    await world.delivery().once()
    assert sorted(world.told()) == [("parked", "unavailable"), ("sent", ""), ("skipped", "erased")]
    assert [(await world.row(m))["state"] for m in (before, after)] == ["skipped", "sent"]
    assert (await world.row(before))["request"] is None


async def test_one_a_lead_is_one_also_where_it_was_several(world: Any) -> None:
    mailed, other, survivor = [await world.lead() for _ in range(3)]

    async def already(*leads: tuple[str, str], **changes: Any) -> list[tuple[str, str]]:
        asked = [
            world.request(lead, event_id=event, **{"message_id": f"{world.name}-{lead}", "once_per": "lead"} | changes)
            for lead, event in leads
        ]
        told = [CODEC.decode(output.value or b"").record for output in await world.take(*asked)]
        return [(outcome["event_id"], outcome["reason"]) for outcome in told]

    assert await already((mailed, "e-1")) == []
    for loser in (mailed, other):
        await world.pool.execute("INSERT INTO lead_aliases (alias_id, lead_id) VALUES ($1, $2)", loser, survivor)
    assert await already((survivor, "e-2"), (other, "e-3")) == [("e-2", "already_asked"), ("e-3", "already_asked")]
    assert await already((mailed, "e-1"), (mailed, "e-4")) == [("e-4", "already_asked")]
    assert await already((survivor, "e-5"), campaign="another", message_id=f"{world.name}-5") == []
    assert await already((survivor, "e-6"), once_per="event", message_id=f"{world.name}-6") == []
    await world.delivery().once()
    assert (await world.stats())["messages"] == 3

    one, two = await world.lead(), await world.lead()
    await world.pool.execute("INSERT INTO lead_aliases (alias_id, lead_id) VALUES ($1, $2)", one, two)
    assert await already((one, "e-7"), (two, "e-8")) == [("e-8", "already_asked")]


async def test_what_waited_for_too_long_is_given_up(world: Any) -> None:
    await world.ask()
    await world.faults(code=451)
    delivery = world.delivery(expire_s=3600)
    await delivery.once()
    world.clock.forward(3601)
    await delivery.once()
    assert world.told() == [("parked", "unavailable"), ("dead", "expired")]


async def test_the_database_away_at_the_wrong_moment_loses_no_result(world: Any) -> None:
    message_id = await world.ask()
    calls: list[str] = []

    class Flaky(Store):
        async def finished(self, claim: Claim, state: str, reason: Reason | None = None, provider_id: str = "") -> bool:
            calls.append(state)
            if len(calls) < 3:
                raise DependencyAway("Postgres", "gone")
            return await super().finished(claim, state, reason, provider_id)

    delivery = world.delivery(store=Flaky(world.pool, world.name, lease_s=300, clock=world.clock))
    await delivery.once()
    assert (await world.row(message_id))["state"] == "sent"
    assert world.told() == [("sent", "")]


async def test_what_is_no_request_is_dead_and_what_is_for_others_is_left(world: Any) -> None:
    lead_id = await world.lead()
    good, other = world.request(lead_id), world.request(lead_id, channel="slack")
    bad = [type(good)(value, 1) for value in (None, b"x", world.request("no-uuid").value())]
    bad += [world.request(lead_id, event_id="a\0b"), world.request(lead_id, requested_at=2**62)]
    outputs = await world.take(good, other, *bad)
    assert [output.topic for output in outputs] == ["leads.dead"] * 5
    assert await world.pool.fetchval("SELECT count(*) FROM messages_sent WHERE channel = $1", world.name) == 1
    assert await world.pool.fetchval("SELECT count(*) FROM messages_sent WHERE channel = 'slack'") == 0


async def _state(world: Any, message_id: str, state: str) -> bool:
    return bool((await world.row(message_id))["state"] == state)


async def _count(world: Any, count: int) -> bool:
    return len(world.outcomes) == count
