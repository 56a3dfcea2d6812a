"""A transaction is bounded in bytes: a batch on large leads is decided in several, and each event once, in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import asyncpg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import DependencyUnavailable
from infra.kafka.producer import Output
from streams.intake.decision import Change, Decision
from streams.intake.event import Event
from streams.intake.part_size import Cut, PartSize
from streams.intake.route import Router
from streams.intake.store import Store
from streams.intake.transactions import decide_in_parts
from tests.conftest import outputs_of
from tests.events import CODEC, NOW, event, message, payload
from tests.streams.intake.conftest import intake, leads
from tests.streams.intake.memory import MemoryStore

LIMIT = 100_000
EVENTS = [event("page_viewed", f"e-{n}", email="a@example.com", offset=n) for n in range(40)]


@given(st.lists(st.integers(0, 3 * LIMIT), min_size=40, max_size=40))
@settings(max_examples=200, deadline=None)
async def test_each_event_is_decided_once_in_order_and_no_part_is_too_large(sizes: list[int]) -> None:
    parts: list[list[int]] = []

    async def decide(part: Sequence[Event]) -> Decision:
        total = 0
        for number, one in enumerate(part):
            total += sizes[one.offset]
            if total > LIMIT and number + 1 < len(part):
                raise Cut((number + 1) / len(part))
        parts.append([one.offset for one in part])
        changes = [Change(e, "", 1, 0, (), "", {}, 1, "x" * sizes[e.offset]) for e in part]
        return Decision(accepted=changes)

    decided = [each async for each in decide_in_parts(EVENTS, decide, PartSize(LIMIT))]

    assert [offset for part in parts for offset in part] == list(range(40))
    assert len(decided) == len(parts)
    assert all(sum(sizes[offset] for offset in part[:-1]) <= LIMIT for part in parts)


def test_parts_grow_by_steps_after_large_leads() -> None:
    size = PartSize(1 << 24)
    assert size.events == 256
    size.decided(256, 256 * 500)
    assert size.events == 1024
    for _ in range(4):
        size.decided(1000, 500_000)
    assert size.events > 30_000
    size.decided(1000, 100_000_000)
    assert size.events < 200
    before = size.events
    size.decided(before, 0)  # duplicates say nothing about the size of leads
    assert size.events == before


async def test_what_is_not_accepted_is_published_once_however_often_its_batch_is_repeated() -> None:
    unavailable = 3

    def fail(events: Sequence[Event]) -> None:
        nonlocal unavailable
        if events[-1].event_id == "last" and unavailable:
            unavailable -= 1
            raise DependencyUnavailable("Postgres", "stopped")

    names = ["first", "first", "reused", "reused", *(f"e-{n}" for n in range(400)), "last"]
    values = [payload("lead_updated", name, email="a@example.com") for name in names]
    values[3] = payload("lead_updated", "reused", email="a@example.com", title="CEO")
    stage = intake(MemoryStore(fail), now=lambda: NOW)
    batch = stage.prepare([*(message(value, offset=n) for n, value in enumerate(values)), message(b"?", offset=999)])
    published: list[Output] = []
    for _ in range(4):
        with suppress(DependencyUnavailable):
            async for outputs in stage.apply(batch):
                published += outputs() if callable(outputs) else outputs

    topics = Counter(output.topic for output in published)
    assert unavailable == 0
    assert (topics["leads.outcomes"], topics["leads.dead"]) == (1, 2)
    assert topics["leads.changed"] >= len(names) - 2


def growing(n: int, tenant: str) -> bytes:
    custom = {f"key-{n}-{k}": "x" * 8000 for k in range(5)}
    return payload("lead_updated", f"e-{n}", tenant=tenant, email=f"{n % 3}@example.com", custom=custom)


@pytest.mark.integration
@pytest.mark.parametrize("redelivered", [False, True])
async def test_a_batch_on_large_leads_is_decided_in_several_transactions(
    pool: asyncpg.Pool, unique: str, redelivered: bool
) -> None:
    batch = [message(growing(n, unique), offset=n) for n in range(30)]
    whole = MemoryStore()
    expected = await outputs_of(intake(whole).apply(intake(whole).prepare(batch)))
    stage = intake(Store(pool, max_bytes=LIMIT), part_bytes=LIMIT)
    if redelivered:
        await outputs_of(stage.apply(stage.prepare(batch)))

    parts: list[Any] = [part() if callable(part) else part async for part in stage.apply(stage.prepare(batch))]

    def versions(outputs: Sequence[Any]) -> list[tuple[str, int]]:
        records = [CODEC.decode(o.value).record for o in outputs if o.topic == "leads.changed"]
        return [(record["event_id"], record["version"]) for record in records]

    assert versions([output for part in parts for output in part]) == versions(expected)
    assert len(parts) > 10
    assert [lead["version"] for lead in await leads(pool, unique)] == [10, 10, 10]
    largest = max(sum(len(output.value or b"") for output in part) for part in parts)
    assert largest < 12 * LIMIT  # one event's records, each with a lead of 400 KB at most


def test_the_limit_of_a_part_is_that_of_the_router() -> None:
    assert Router(CODEC, [], part_bytes=7).limits.part_bytes == 7


async def test_a_single_event_whose_leads_are_too_large_together_is_dead_and_stops_nothing() -> None:
    async def decide(_: Sequence[Event]) -> Decision:
        raise Cut(0.9)

    (decided,) = [each async for each in decide_in_parts(EVENTS[:1], decide, PartSize(LIMIT))]
    assert [each.event for each in decided.oversize] == EVENTS[:1]


async def test_redelivered_events_of_a_large_lead_are_published_in_parts() -> None:
    store = MemoryStore()
    batch = [message(growing(n, "acme"), offset=n) for n in range(0, 30, 3)]
    stage = intake(store)
    await outputs_of(stage.apply(stage.prepare(batch)))
    again = intake(store, part_bytes=LIMIT)

    parts = [part() if callable(part) else part async for part in again.apply(again.prepare(batch))]

    versions = [
        CODEC.decode(o.value or b"").record["version"] for part in parts for o in part if o.topic == "leads.changed"
    ]
    assert versions == list(range(1, 11))
    assert len(parts) > 5
