"""Messages that fail, a server that is unavailable, and a stop in between."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any

import pytest

from infra.errors import DependencyUnavailable
from infra.postgres.leased_rows import Done, Lease
from infra.postgres.pool import MINUS_INFINITY
from infra.runtime import Stop
from sinks.messages import BeforeSending, OutgoingMessage, SendResult
from sinks.messages.messages_table import MessageRow, MessagesTable
from tests.conftest import eventually
from tests.sinks.messages.crashing import Crashing

pytestmark = pytest.mark.integration


async def test_a_temporary_failure_is_parked_alone_and_then_one_mail(world: Any) -> None:
    message_id = await world.requested()
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
    await world.requested()
    assert await delivery.once() == 1  # the other one, at once
    world.clock.forward(10.1)
    assert await delivery.once() == 1
    assert await world.stats() == {"messages": 2, "unique": 2, "duplicates": 0, "refused": 2}
    assert world.reported() == [("parked", "unavailable"), ("sent", ""), ("sent", "")]
    assert world.outcomes[0]["detail"] == "demo_request 451 4.3.0"


async def test_many_temporary_failures_end_in_one_mail_each(world: Any) -> None:
    lead_id = await world.lead()
    await world.consume(*(world.request(lead_id) for _ in range(40)))
    await world.faults(code=451, share=0.5)
    delivery = world.delivery()
    for _ in range(200):
        await delivery.once()
        world.clock.forward(30)
        if len([what for what, _ in world.reported() if what == "sent"]) == 40:
            break
    stats = await world.stats()
    assert (stats["messages"], stats["duplicates"]) == (40, 0)
    assert stats["refused"] > 5


@pytest.mark.parametrize("at", ["rcpt", "data"])
async def test_a_refusal_for_good_is_dead(world: Any, at: str) -> None:
    message_id = await world.requested()
    await world.faults(code=550, at=at)
    await world.delivery().once()
    row = await world.row(message_id)
    assert (row["state"], row["last_error"], row["request"]) == ("failed", "rejected", None)
    assert world.reported() == [("dead", "rejected")]


async def test_an_unavailable_server_pauses_the_channel_and_costs_no_message_an_attempt(world: Any) -> None:
    messages = [await world.requested() for _ in range(20)]
    away = world.delivery(max_connections=2, url="smtp://127.0.0.1:1")
    assert await away.once() == 2
    assert await away.once() == 0
    assert {(await world.row(m))["attempts"] for m in messages} == {0}
    assert set(world.reported()) == {("parked", "unavailable")}
    world.clock.forward(60)
    back = world.delivery()
    while await back.once():
        pass
    assert await world.stats() == {"messages": 20, "unique": 20, "duplicates": 0, "refused": 0}


async def test_what_was_claimed_ahead_of_a_pause_is_released_and_costs_no_attempt(world: Any) -> None:
    messages = [await world.requested() for _ in range(20)]
    stop = Stop()
    running = asyncio.create_task(world.delivery(max_connections=2, url="smtp://127.0.0.1:1").run(stop))

    async def none_is_claimed() -> bool:
        rows = [await world.row(m) for m in messages]
        free = {(row["state"], row["claimed_until"]) for row in rows} == {("waiting", MINUS_INFINITY)}
        return len(world.outcomes) == 2 and free

    await eventually(none_is_claimed)
    stop.request()
    await running
    rows = [await world.row(m) for m in messages]
    assert {row["attempts"] for row in rows} == {0}
    assert sorted(row["last_error"] for row in rows) == [""] * 18 + ["unavailable"] * 2


async def test_asked_to_stop_it_finishes_what_it_has_begun_and_releases_the_rest(world: Any) -> None:
    messages = [await world.requested() for _ in range(12)]
    stop, begun, go_on = Stop(), asyncio.Event(), asyncio.Event()

    class Slow(Crashing):
        async def send(self, message: OutgoingMessage, before_sending: BeforeSending) -> SendResult:
            begun.set()
            await go_on.wait()
            return await super().send(message, before_sending)

    running = asyncio.create_task(world.delivery(Slow(world.channel(), ""), max_connections=2).run(stop))
    await begun.wait()
    stop.request()
    go_on.set()
    await running
    rows = [await world.row(m) for m in messages]
    assert sorted(row["state"] for row in rows) == ["sent"] * 2 + ["waiting"] * 10
    assert {row["claimed_until"] for row in rows if row["state"] == "waiting"} == {MINUS_INFINITY}
    assert world.reported() == [("sent", "")] * 2
    assert (await world.stats())["messages"] == 2


async def test_what_waited_for_too_long_is_given_up(world: Any) -> None:
    await world.requested()
    await world.faults(code=451)
    delivery = world.delivery(expire_s=3600)
    await delivery.once()
    world.clock.forward(3601)
    await delivery.once()
    assert world.reported() == [("parked", "unavailable"), ("dead", "expired")]


async def test_an_unavailable_database_at_the_wrong_moment_loses_no_result(world: Any) -> None:
    message_id = await world.requested()
    calls: list[str] = []

    class Flaky(MessagesTable):
        async def finish(self, lease: Lease[MessageRow], done: Sequence[tuple[MessageRow, Done]]) -> Collection[str]:
            calls.append(done[0][0].key)
            if len(calls) < 3:
                raise DependencyUnavailable("Postgres", "gone")
            return await super().finish(lease, done)

    delivery = world.delivery(table=Flaky(world.pool, world.name, lease_s=300, clock=world.clock))
    await delivery.once()
    assert (await world.row(message_id))["state"] == "sent"
    assert world.reported() == [("sent", "")]
