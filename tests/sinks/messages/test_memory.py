"""Few contents of large messages are in memory at the same time, and all of them are sent."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from sinks.messages import BeforeSending, OutgoingMessage, SendResult, Sent

pytestmark = pytest.mark.integration

LARGE = 500_000


class Counting:
    """A channel that notes how many large messages are sent at the same time."""

    name = "email"
    dedupes = True

    def __init__(self) -> None:
        self.bodies: Counter[int] = Counter()
        self.most = self._now = 0

    async def send(self, message: OutgoingMessage, before_sending: BeforeSending) -> SendResult:
        size = len(message.body)
        self.bodies[size] += 1
        self._now += size == LARGE
        self.most = max(self.most, self._now)
        await before_sending()
        await asyncio.sleep(0)  # the others run
        self._now -= size == LARGE
        return Sent("1")

    async def close(self) -> None:
        return


async def test_large_messages_are_read_when_they_are_sent(world: Any) -> None:
    for number in range(30):
        await world.requested(body="x" * (LARGE if number % 2 else 10))
    lease = await world.table().claim(100)
    assert sum(len(row.request or b"") for row in lease.rows) < 30 * 1000
    await world.table().release(lease, lease.rows)

    channel = Counting()
    work = world.delivery(channel, max_connections=16)
    while await work.once():
        pass
    assert channel.bodies == {10: 15, LARGE: 15}
    assert channel.most <= 4
    assert world.reported() == [("sent", "")] * 30
