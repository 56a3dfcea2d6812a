"""What is requested is sent, over a real Postgres and a real SMTP conversation, whatever crashes."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from infra.errors import DependencyUnavailable
from infra.postgres.leased_rows import Lease
from infra.runtime import Stop
from sinks.messages import BeforeSending, OutgoingMessage, SendResult
from sinks.messages.messages_table import MessageRow, MessagesTable
from tests.conftest import eventually
from tests.sinks.messages.crashing import Crash, Crashing

pytestmark = pytest.mark.integration


async def test_a_message_is_sent_and_its_content_is_deleted(world: Any) -> None:
    message_id = await world.requested()
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


async def test_a_crash_before_handing_over_costs_nothing(world: Any) -> None:
    message_id = await world.requested()
    with pytest.raises(Crash):
        await world.delivery(Crashing(world.channel(), "before")).once()
    row = await world.row(message_id)
    assert (row["state"], row["claimed_until"] > world.clock()) == ("waiting", True)
    assert await world.delivery().once() == 0  # still leased
    world.clock.forward(301)
    assert await world.delivery().once() == 1
    assert await world.stats() == {"messages": 1, "unique": 1, "duplicates": 0, "refused": 0}
    assert world.reported() == [("sent", "")]


async def test_who_would_rather_not_send_than_send_twice_has_it_held_after_such_a_crash(world: Any) -> None:
    message_id = await world.requested()
    with pytest.raises(Crash):
        await world.delivery(Crashing(world.channel(), "after")).once()
    assert (await world.row(message_id))["state"] == "sending"
    world.clock.forward(301)
    await world.delivery(when_unsure="hold").once()
    assert await world.stats() == {"messages": 1, "unique": 1, "duplicates": 0, "refused": 0}
    row = await world.row(message_id)
    assert (row["state"], row["last_error"], row["request"]) == ("failed", "unsure", None)
    assert world.reported() == [("dead", "unsure")]


async def test_what_is_unsure_stays_so_crash_after_crash(world: Any) -> None:
    message_id = await world.requested()
    with pytest.raises(Crash):
        await world.delivery(Crashing(world.channel(), "after")).once()
    world.clock.forward(301)
    assert len((await world.table().claim(1)).rows) == 1  # and the process ends before it does anything about it
    world.clock.forward(301)
    await world.delivery(when_unsure="hold").once()
    assert (await world.row(message_id))["last_error"] == "unsure"
    assert (await world.stats())["messages"] == 1


async def test_what_is_released_is_due_again_and_as_sure_as_before(world: Any) -> None:
    table, message_id = world.table(), await world.requested()
    lease = await table.claim(1)
    await table.release(lease, lease.rows)
    assert (await world.row(message_id))["state"] == "waiting"
    lease = await table.claim(1)
    assert await table.mark_sending(lease, lease.rows[0])
    for _ in range(2):
        world.clock.forward(301)
        lease = await table.claim(1)
        (row,) = lease.rows
        assert row.unsure
        await table.release(lease, lease.rows)
    assert row.attempts == 0


async def test_a_crash_between_send_and_mark_sends_it_again_with_the_same_message_id(world: Any) -> None:
    await world.requested()
    with pytest.raises(Crash):
        await world.delivery(Crashing(world.channel(), "after")).once()
    world.clock.forward(301)
    await world.delivery().once()
    assert await world.stats() == {"messages": 2, "unique": 1, "duplicates": 1, "refused": 0}
    assert world.reported() == [("sent", "")]


async def test_where_the_provider_dedupes_an_unsure_message_is_sent_again(world: Any) -> None:
    await world.requested()
    with pytest.raises(Crash):
        await world.delivery(Crashing(world.channel(), "after", dedupes=True)).once()
    world.clock.forward(301)
    await world.delivery(Crashing(world.channel(), "", dedupes=True)).once()
    assert world.reported() == [("sent", "")]


async def test_a_lost_answer_is_parked_and_the_mail_sent_again_with_the_same_message_id(world: Any) -> None:
    message_id = await world.requested()
    await world.faults(lose=True)
    await world.delivery().once()
    row = await world.row(message_id)
    assert (row["state"], row["attempts"], row["last_error"]) == ("waiting", 1, "unavailable")
    await world.faults()
    world.clock.forward(5.1)
    await world.delivery().once()
    assert world.reported() == [("parked", "unavailable"), ("sent", "")]
    assert await world.stats() == {"messages": 2, "unique": 1, "duplicates": 1, "refused": 0}


async def test_a_lost_answer_is_held_where_that_is_wanted(world: Any) -> None:
    message_id = await world.requested()
    await world.faults(lose=True)
    await world.delivery(when_unsure="hold").once()
    assert (await world.row(message_id))["last_error"] == "unsure"
    assert world.reported() == [("dead", "unsure")]
    assert (await world.stats())["messages"] == 1


async def test_a_worker_that_lost_its_lease_hands_nothing_over(world: Any) -> None:
    message_id = await world.requested()
    late = asyncio.Event()

    class Late(Crashing):
        async def send(self, message: OutgoingMessage, before_sending: BeforeSending) -> SendResult:
            await late.wait()
            return await super().send(message, before_sending)

    slow = asyncio.create_task(world.delivery(Late(world.channel(), "")).once())
    await eventually(lambda: _claimed(world, message_id))
    world.clock.forward(301)
    assert await world.delivery().once() == 1
    late.set()
    await slow
    assert await world.stats() == {"messages": 1, "unique": 1, "duplicates": 0, "refused": 0}
    assert world.reported() == [("sent", "")]


async def test_two_workers_at_once_send_each_message_once(world: Any) -> None:
    lead_id = await world.lead()
    await world.consume(*(world.request(lead_id) for _ in range(120)))
    stop = Stop()
    workers = [asyncio.create_task(world.delivery(max_connections=3, poll_s=0.05).run(stop)) for _ in range(2)]
    await eventually(lambda: _count(world, 120))
    stop.request()
    await asyncio.gather(*workers)
    assert await world.stats() == {"messages": 120, "unique": 120, "duplicates": 0, "refused": 0}
    assert world.reported() == [("sent", "")] * 120


async def _claimed(world: Any, message_id: str) -> bool:
    return bool((await world.row(message_id))["claimed_until"] > world.clock())


async def _count(world: Any, count: int) -> bool:
    return len(world.outcomes) == count


async def test_a_channel_that_does_not_end_leaves_its_message_unsure(world: Any) -> None:
    message_id = await world.requested()

    class Stubborn(Crashing):
        async def send(self, message: OutgoingMessage, before_sending: BeforeSending) -> SendResult:  # noqa: ARG002
            await before_sending()
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            return await asyncio.Event().wait()  # type: ignore[return-value]

    table = MessagesTable(world.pool, world.name, lease_s=0.4, clock=world.clock)
    await world.delivery(Stubborn(world.channel(), ""), table=table, when_unsure="hold").once()
    row = await world.row(message_id)
    assert (row["state"], row["attempts"], world.reported()) == ("sending", 0, [])
    await world.delivery(when_unsure="hold").once()
    assert world.reported() == [("dead", "unsure")]
    assert (await world.stats())["messages"] == 0


async def test_a_database_that_is_lost_before_handing_over_leaves_nothing_unsure(world: Any) -> None:
    message_id = await world.requested()

    class Lost(MessagesTable):
        async def mark_sending(self, lease: Lease[MessageRow], row: MessageRow) -> bool:
            await super().mark_sending(lease, row)
            raise DependencyUnavailable("Postgres", "its answer was lost")

    lost = Lost(world.pool, world.name, lease_s=300, clock=world.clock)
    await world.delivery(table=lost, when_unsure="hold").once()
    row = await world.row(message_id)
    assert (row["state"], row["attempts"]) == ("waiting", 0)
    world.clock.forward(6)
    await world.delivery(when_unsure="hold").once()
    assert world.reported() == [("parked", "unavailable"), ("sent", "")]
    assert (await world.stats())["messages"] == 1
