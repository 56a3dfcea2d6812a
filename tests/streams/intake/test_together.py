"""Any order of events, and several workers: the same leads, and each event accepted once."""

from __future__ import annotations

import asyncio
import json
import random
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streams.intake.merge import LOST, Lead, merge
from streams.intake.validate import validate
from tests.conftest import Stack
from tests.events import CODEC, HOUR, NOW, message, payload
from tests.streams.intake.conftest import intake, leads, open_pool, put, state

pytestmark = pytest.mark.integration


def crowd(rng: random.Random, tenant: str, count: int) -> list[bytes]:
    """Return events of a few people, some of whom are merged by later events."""
    made = []
    for number in range(count):
        who = rng.randrange(6)
        ids: dict[str, Any] = {"email": f"p{who}@example.com", "external_id": f"x{who // 2}"}
        ids["crm_ids"] = {"hubspot": f"h{who}"}
        identifiers = {name: ids[name] for name in rng.sample(sorted(ids), rng.choice((1, 1, 1, 2)))}
        if rng.random() < 0.3:  # a browser of one person: alone, or with the address
            identifiers = {"anonymous_id": f"a{who}"} | rng.choice(({}, {"email": ids["email"]}))
        own: dict[str, Any] = {"at": NOW - rng.randrange(4) * HOUR, "tenant": tenant, **identifiers}
        kind = rng.choice(["lead_updated", "form_submitted", "enrichment_completed", "page_viewed", "consent_changed"])
        # No erasures: what comes after one is refused, so their order counts. See test_erasure.py.
        if kind in ("lead_updated", "form_submitted", "enrichment_completed"):
            own |= {"first_name": rng.choice("ABC"), "employees": rng.choice((None, 1, 2))}
        if kind == "lead_updated":
            own["custom"] = {rng.choice("kl"): rng.choice("vw")}
        if kind == "enrichment_completed":
            own["provider"] = "pdl"
        if kind == "page_viewed":
            own["url"] = "/"
        if kind == "consent_changed":
            own |= {"purpose": "marketing", "status": rng.choice(["granted", "withdrawn"])}
        made.append(payload(kind, f"e-{number}", **own))
    return made


async def check(pool: asyncpg.Pool, tenant: str, values: Sequence[bytes]) -> set[str]:
    """Compare the stored leads with the result of the merge rule for all ``values``; return them without their ids."""
    stored = await state(pool, tenant)
    live = {lead["lead_id"]: lead for lead in await leads(pool, tenant)}
    owner = {(kind, value): str(lead_id) for kind, value, lead_id in stored["identities"]}
    assert set(owner.values()) == set(live)
    alone = {lead_id: Lead(lead_id, tenant, touches=[]) for lead_id in live}
    for value in set(values):
        event = validate(CODEC.decode(value), message(value), NOW, HOUR)
        found = {owner[identity[1:]] for identity in event.identities}  # type: ignore[union-attr]
        assert len(found) == 1
        merge(alone[found.pop()], event)  # type: ignore[arg-type]
    for lead_id, lead in live.items():
        assert lead["attributes"] == alone[lead_id].attributes
        lead["provenance"].pop(LOST, None)  # what a split would give back depends on the order of the merges
        assert lead["provenance"] == alone[lead_id].provenance
        assert lead["email"] == alone[lead_id].attributes.get("email")
        versions = [row[1] for row in stored["lead_history"] if str(row[0]) == lead_id]
        assert versions == list(range(1, lead["version"] + 1))
    assert len(stored["lead_history"]) == len(stored["receipts"]) == len(set(values))
    groups = {lead_id: sorted(i for i, of in owner.items() if of == lead_id) for lead_id in live}
    known = ([groups[lead_id], lead["attributes"], lead["provenance"]] for lead_id, lead in live.items())
    return {json.dumps(lead, sort_keys=True) for lead in known}


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6))
async def test_any_order_and_batching_gives_the_same_leads(stack: Stack, seed: int) -> None:
    found: list[set[str]] = []
    async with open_pool(stack.dsn) as pool:
        for turn in range(2):
            tenant = uuid.uuid4().hex
            values = crowd(random.Random(seed), tenant, 25)
            rng = random.Random(seed + turn)
            feed = values + rng.sample(values, 5)
            rng.shuffle(feed)
            found_messages = [message(value, offset=n) for n, value in enumerate(feed)]
            stage = intake(pool)
            while found_messages:
                size = rng.randint(1, 8)
                await put(stage, *found_messages[:size])
                if rng.random() < 0.3:
                    await put(stage, *found_messages[:size])  # it crashed before the commit
                del found_messages[:size]
            found.append(await check(pool, tenant, values))
    assert found[0] == found[1]


async def test_the_partitions_of_coming_months_are_created_at_start_and_every_day(
    pool: asyncpg.Pool, unique: str
) -> None:
    months = "SELECT relname FROM pg_class WHERE relname ~ '^(receipts|lead_history)_[0-9_]*$' ORDER BY 1"
    made = [row[0] for row in await pool.fetch(months)]
    start = clock = time.time_ns() // 1000
    stage = intake(pool, now=lambda: clock)
    for number, passed in enumerate((0, 23 * HOUR, 24 * HOUR)):
        for table in (made[len(made) // 2 - 1], made[-1]):  # the last of each
            await pool.execute(f"DROP TABLE IF EXISTS {table}")
        clock = start + passed
        await put(stage, message(payload("page_viewed", f"e-{number}", tenant=unique, email="a@x.com"), offset=number))
        left = [row[0] for row in await pool.fetch(months)]
        assert (left == made) is (passed != 23 * HOUR)


async def test_two_workers_at_the_turn_of_a_month_accept_an_event_once(pool: asyncpg.Pool, unique: str) -> None:
    turn = (datetime.now(UTC).replace(day=1) + timedelta(days=32)).replace(day=1, hour=0, minute=0, second=0)
    before, after = ((turn + timedelta(seconds=s)).timestamp() for s in (-2, 2))
    stages = [intake(pool, now=lambda at=at: int(at * 1e6)) for at in (before, after)]
    await put(stages[0], message(payload("page_viewed", "e-0", tenant=unique, email="ada@example.com")))
    for number in range(1, 11):  # the lead is there, so that its identity does not make one of them wait
        value = payload("page_viewed", f"e-{number}", tenant=unique, email="ada@example.com")

        published = await asyncio.gather(*(put(stage, message(value, partition=n)) for n, stage in enumerate(stages)))

        assert sorted((len(each["lead_change"]), len(each["outcome"])) for each in published) == [(0, 1), (1, 0)]


async def decide_partition(
    pool: asyncpg.Pool, partition: int, values: list[bytes]
) -> list[dict[str, list[dict[str, Any]]]]:
    """Process a partition in small batches; return what each batch published."""
    stage = intake(pool)
    found = [message(value, offset=n, partition=partition) for n, value in enumerate(values)]
    return [await put(stage, *found[start : start + 3]) for start in range(0, len(found), 3)]


async def test_workers_with_events_of_the_same_people_lose_no_update(
    stack: Stack, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "leadstream.intake")
    rng = random.Random(11)
    async with open_pool(stack.dsn) as one, open_pool(stack.dsn) as two, open_pool(stack.dsn) as three:
        for turn in range(25):  # new people each time, so that many merges meet
            tenant = f"{unique}-{turn}"
            values = crowd(rng, tenant, 45)
            # each partition has its own events, and a few that another one has as well
            feeds = [values[n::3] + rng.sample(values, 5) for n in range(3)]
            parts = await asyncio.gather(
                *(decide_partition(pool, n, feeds[n]) for n, pool in enumerate((one, two, three)))
            )
            published = [each for part in parts for each in part]
            await check(one, tenant, values)
            rows = "SELECT event_id, lead_id::text, version FROM lead_history WHERE tenant = $1"
            history = sorted(tuple(row) for row in await one.fetch(rows, tenant))
            assert (
                sorted((c["event_id"], c["lead_id"], c["version"]) for t in published for c in t["lead_change"])
                == history
            )
            assert sum(len(each["outcome"]) for each in published) == 15
    assert "contended" in caplog.messages  # or they did not meet
