"""An event that would make its lead or a record about it too large is dead and changes nothing."""

from __future__ import annotations

import json
from typing import Any

import asyncpg
import pytest

from infra.kafka.topics import load_topics as topics
from streams.intake.pipeline import Intake
from tests.conftest import outputs_of
from tests.events import CODEC, HOUR, NOW, message, payload
from tests.streams.intake.conftest import intake, leads, state

pytestmark = pytest.mark.integration


LIMIT = 1 << 20  # of a lead, in bytes of JSON
LARGEST = {name: int(topic.config["max.message.bytes"]) for name, topic in topics().items()}


async def offer(stage: Intake, *values: bytes) -> dict[str, str]:
    """Process one batch; return the event ids of its dead letters with their reasons; check the size of all outputs."""
    found = [message(value, offset=n) for n, value in enumerate(values)]
    outputs = await outputs_of(stage.apply(stage.prepare(found)))
    for output in outputs:
        assert len(output.value or b"") + 1000 < LARGEST[output.topic]
    dead = [output for output in outputs if output.topic == "leads.dead"]
    ids = [CODEC.decode(output.value or b"").record["envelope"]["event_id"] for output in dead]
    return {n: dict(o.headers or [])["leadstream.reason"].decode() for n, o in zip(ids, dead, strict=True)}


def large(event_id: str, tenant: str, size: int, letter: str = "x", kind: str = "lead_updated", **own: Any) -> bytes:
    """Return an event of about ``size`` bytes of JSON, whose values no other event has."""
    each = 8000 * len(json.dumps(letter, ensure_ascii=False).encode().strip(b'"'))
    name = "answers" if kind == "form_submitted" else "custom"
    values = {f"{event_id}-{n}": letter * 8000 for n in range(size // each)}
    return payload(kind, event_id, tenant=tenant, **{name: values}, **own)


async def test_a_lead_at_its_maximum_size_gets_no_more_values_and_does_not_affect_others(
    pool: asyncpg.Pool, unique: str
) -> None:
    def growing(n: int) -> bytes:
        custom = {f"key-{n}-{k}": "x" * 8000 for k in range(7)}
        return payload("lead_updated", f"e-{n}", tenant=unique, email="grows@example.com", custom=custom)

    values = [growing(n) for n in range(24)]
    values.append(payload("lead_updated", "other", tenant=unique, email="other@example.com"))
    found = [message(value, offset=n) for n, value in enumerate(values)]
    stage = intake(pool)
    outputs = [o for part in (found[:10], found[10:]) for o in await outputs_of(stage.apply(stage.prepare(part)))]
    letters = [output for output in outputs if output.topic == "leads.dead"]
    grown = next(lead for lead in await leads(pool, unique) if lead["email"] == "grows@example.com")
    assert grown["version"] == 24 - len(letters) > 10
    assert [letter.value for letter in letters] == values[24 - len(letters) : 24]
    assert {dict(letter.headers or [])["leadstream.reason"] for letter in letters} == {b"too_large"}
    assert max(len(output.value or b"") for output in outputs) < 4_194_304
    assert len(await leads(pool, unique)) == 2


@pytest.mark.parametrize("letter", ["x", "\x01", "\u6f22"], ids=["ascii", "escaped", "three bytes"])
async def test_an_event_too_large_for_any_lead_changes_nothing(pool: asyncpg.Pool, unique: str, letter: str) -> None:
    stage = intake(pool, max_event_bytes=2 * LIMIT)
    first = large("e-1", unique, LIMIT + 50_000, letter, email="a@example.com", external_id="a")
    small = payload("lead_updated", "e-2", tenant=unique, email="a@example.com", first_name="Ada")

    assert await offer(stage, first, small) == {"e-1": "too_large"}
    (lead,) = await leads(pool, unique)
    assert (lead["version"], lead["attributes"]["first_name"]) == (1, "Ada")
    assert [row[:2] for row in (await state(pool, unique))["identities"]] == [("email", "a@example.com")]
    assert await offer(stage, first) == {"e-1": "too_large"}


async def test_leads_that_would_be_too_large_together_are_not_merged(pool: asyncpg.Pool, unique: str) -> None:
    stage = intake(pool, max_event_bytes=2 * LIMIT)
    ways: list[dict[str, Any]] = [{"email": "a@example.com"}, {"external_id": "a"}]
    form = "form_submitted"
    for n, way in enumerate(ways):
        assert not await offer(stage, large(f"l-{n}", unique, LIMIT * 5 // 8, "\u6f22", **way))
    before = await state(pool, unique)
    joining = payload(
        "lead_updated", "joining", tenant=unique, email="a@example.com", external_id="a", phone="+442071838750"
    )
    after = [payload(form, f"f-{n}", tenant=unique, form_id="demo", **way) for n, way in enumerate(ways)]

    assert await offer(stage, joining, *after) == {"joining": "too_large"}
    assert [lead["version"] for lead in await leads(pool, unique)] == [2, 2]
    assert (await state(pool, unique))["identities"] == before["identities"]
    assert not await offer(stage, large("last", unique, LIMIT // 4, kind=form, form_id="demo", **ways[0]))


async def test_an_erasure_that_would_merge_leads_into_one_too_large_is_dead(pool: asyncpg.Pool, unique: str) -> None:
    stage = intake(pool, max_event_bytes=2 * LIMIT)
    ways: list[dict[str, Any]] = [{"email": "a@example.com"}, {"external_id": "a"}]
    for n, way in enumerate(ways):
        assert not await offer(stage, large(f"l-{n}", unique, LIMIT * 5 // 8, **way))
    who = {"email": "a@example.com", "external_id": "a", "reason": "request"}
    early = payload("lead_erased", "early", tenant=unique, at=NOW - HOUR, **who)

    assert await offer(stage, early) == {"early": "too_large"}
    assert await offer(stage, payload("lead_erased", "late", tenant=unique, at=NOW + 1, **who)) == {}
    (lead,) = await leads(pool, unique)
    assert "custom" not in lead["attributes"]


async def test_clearing_names_without_end_leaves_the_lead_writable(pool: asyncpg.Pool, unique: str) -> None:
    stage = intake(pool)
    who: dict[str, Any] = {"tenant": unique, "email": "a@example.com"}
    first = payload("lead_updated", "first", at=NOW - HOUR, title="CTO", custom={"plan": "free"}, **who)
    await stage_all(stage, [first])
    clearing = [
        payload("lead_updated", f"c-{n}", cleared=[f"custom.{n}-{k}-{'x' * 190}" for k in range(200)], **who)
        for n in range(120)
    ]
    reasons = await stage_all(stage, clearing)
    changed = await stage_all(stage, [payload("lead_updated", "last", title="CEO", custom={"plan": "pro"}, **who)])

    assert set(reasons.values()) == {"too_large"}
    assert 0 < len(reasons) < len(clearing)
    assert changed == {}
    (lead,) = await leads(pool, unique)
    assert (lead["attributes"]["title"], lead["attributes"]["custom"]) == ("CEO", {"plan": "pro"})


async def stage_all(stage: Intake, values: list[bytes]) -> dict[str, str]:
    reasons: dict[str, str] = {}
    for first in range(0, len(values), 20):
        reasons |= await offer(stage, *values[first : first + 20])
    return reasons
