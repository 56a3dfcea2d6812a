"""Intake on a real Postgres: decided once, told at least once, whatever comes again, late, together or broken."""

# ruff: noqa: S608 - the statements are ours
from __future__ import annotations

import asyncio
import json
import math
import random
import struct
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import orjson
import pytest
from confluent_kafka import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.errors import DependencyAway
from infra.kafka.processor import Effects
from infra.kafka.producer import Output
from infra.kafka.topics import load as topics
from infra.outcomes import Reason
from infra.postgres.pool import connect
from streams.intake.merge import Lead, merge
from streams.intake.pipeline import Intake
from streams.intake.route import Router
from streams.intake.store import speak_microseconds
from streams.intake.validate import validate
from tests.conftest import Stack
from tests.events import CODEC, HOUR, NOW, message, payload, record

pytestmark = pytest.mark.integration

TOPICS = {
    "leads.changed": "lead_change",
    "leads.crm-hubspot": "crm_wanted",
    "leads.enrichment-requested": "enrichment_request",
    "leads.campaign-signals": "campaign_signal",
    "leads.outcomes": "outcome",
}
LEAD_INSIDE = ("leads.enrichment-requested", "leads.campaign-signals")
# The part of a lead_change that a redelivery repeats exactly: all but the lead as it is by now.
EVENT_PART = ("event_id", "event_type", "lead_id", "version", "decided_at", "changes", "merged", "properties", "offset")


def intake(pool: asyncpg.Pool, **settings: Any) -> Intake:
    router = Router(CODEC, ["leads.crm-hubspot"], frozenset({"form_submitted"}))
    return Intake(pool, CODEC, router, **{"max_event_bytes": 65_536, "max_ahead_s": 86_400} | settings)


@asynccontextmanager
async def open_pool(dsn: str) -> AsyncIterator[asyncpg.Pool]:
    pool = await connect(dsn, size=4, application="tests", init=speak_microseconds)
    try:
        yield pool
    finally:
        await pool.close()


@pytest.fixture
async def pool(stack: Stack) -> AsyncIterator[asyncpg.Pool]:
    async with open_pool(stack.dsn) as there:
        yield there


async def put(stage: Intake, *found: Message) -> dict[str, list[dict[str, Any]]]:
    """Take one batch and return what was told, by the type of its records."""
    effects = await stage.apply(stage.prepare(found))
    told: dict[str, list[dict[str, Any]]] = {name: [] for name in TOPICS.values()}
    for output in effects.to_deliver():
        decoded = CODEC.decode(output.value or b"")
        assert decoded.type == TOPICS[output.topic]
        about = json.loads(decoded.record["lead"]) if output.topic in LEAD_INSIDE else decoded.record
        assert output.key == (about.get("lead_id") or about["event_id"]).encode()
        told[decoded.type].append(decoded.record)
    return told


async def state(pool: asyncpg.Pool, tenant: str) -> dict[str, list[tuple[Any, ...]]]:
    """Return every row about a tenant."""
    mine = "WHERE lead_id IN (SELECT lead_id FROM leads WHERE tenant = $1) ORDER BY 1, 2"
    tables = {
        "leads": "SELECT * FROM leads WHERE tenant = $1 ORDER BY lead_id",
        "identities": "SELECT kind, value, lead_id FROM identities WHERE tenant = $1 ORDER BY 1, 2",
        "lead_history": "SELECT * FROM lead_history WHERE tenant = $1 ORDER BY lead_id, version",
        "receipts": f"SELECT * FROM receipts {mine}",
        "lead_aliases": f"SELECT * FROM lead_aliases {mine}",
        "lead_merges": "SELECT * FROM lead_merges WHERE tenant = $1 ORDER BY survivor_id, loser_id",
    }
    return {name: [tuple(row) for row in await pool.fetch(sql, tenant)] for name, sql in tables.items()}


async def leads(pool: asyncpg.Pool, tenant: str) -> list[dict[str, Any]]:
    rows = await pool.fetch("SELECT * FROM leads WHERE tenant = $1 AND merged_into IS NULL ORDER BY lead_id", tenant)
    known = ("attributes", "provenance")
    return [
        dict(row) | {name: orjson.loads(row[name]) for name in known} | {"lead_id": str(row["lead_id"])} for row in rows
    ]


# -- one by one -------------------------------------------------------------------------------------------------------


async def test_a_new_event_makes_a_lead_and_everybody_is_told(pool: asyncpg.Pool, unique: str) -> None:
    value = payload("form_submitted", "e-1", tenant=unique, email=" Ada@Example.com ", first_name="Ada", form_id="demo")
    told = await put(intake(pool), message(value, offset=41, partition=3))
    (lead,) = await leads(pool, unique)
    (change,) = told["lead_change"]
    assert (lead["version"], lead["email"], lead["attributes"]["first_name"]) == (1, "ada@example.com", "Ada")
    assert (change["lead_id"], change["version"], change["event_id"]) == (lead["lead_id"], 1, "e-1")
    assert (change["topic"], change["partition"], change["offset"]) == ("leads.received", 3, 41)
    assert json.loads(change["changes"])["email"] == "ada@example.com"
    assert json.loads(change["lead"])["first_name"] == "Ada"
    assert [(w["lead_id"], w["version"]) for w in told["crm_wanted"]] == [(lead["lead_id"], 1)]
    assert [json.loads(r["lead"])["email"] for r in told["enrichment_request"]] == ["ada@example.com"]
    assert [json.loads(s["properties"])["form_id"] for s in told["campaign_signal"]] == ["demo"]
    assert told["outcome"] == []
    stored = await state(pool, unique)
    assert [row[:2] for row in stored["identities"]] == [("email", "ada@example.com")]
    assert len(stored["lead_history"]) == len(stored["receipts"]) == 1


@pytest.mark.parametrize(("source", "asked"), [("import", True), ("leadstream:enrichment:pdl", False)])
async def test_whoever_brings_an_address_has_it_enriched_but_for_enrichment_itself(
    pool: asyncpg.Pool, unique: str, source: str, *, asked: bool
) -> None:
    own = {"provider": "import", "domain": "example.com", "source": source}
    value = payload("enrichment_completed", "e-1", tenant=unique, email="ada@example.com", **own)
    told = await put(intake(pool), message(value))
    assert [json.loads(r["lead"])["email"] for r in told["enrichment_request"]] == ["ada@example.com"] * asked


async def test_the_same_event_from_another_record_is_a_duplicate(pool: asyncpg.Pool, unique: str) -> None:
    stage = intake(pool)
    value = payload("form_submitted", "e-1", tenant=unique, email="a@example.com", first_name="Ada")
    other = payload("form_submitted", "e-1", tenant=unique, email="a@example.com", first_name="Eve", at=NOW + HOUR)
    await put(stage, message(value, offset=1))
    before = await state(pool, unique)
    for again in (message(value, offset=2), message(value, offset=1, partition=1), message(other, offset=3)):
        told = await put(stage, again)
        assert [(o["what"], o["reason"], o["event_id"]) for o in told["outcome"]] == [
            ("duplicate", "duplicate_event", "e-1")
        ]
        assert (told["outcome"][0]["partition"], told["outcome"][0]["offset"]) == (again.partition(), again.offset())
        assert not any(told[name] for name in told if name != "outcome")
    assert await state(pool, unique) == before


async def test_of_duplicates_within_a_batch_the_first_counts(pool: asyncpg.Pool, unique: str) -> None:
    named = [payload("lead_created", "e-1", tenant=unique, email="a@example.com", first_name=n) for n in ("Ada", "Eve")]
    told = await put(intake(pool), *(message(v, offset=n) for n, v in enumerate([*named, named[0]])))
    assert [(c["event_id"], c["version"]) for c in told["lead_change"]] == [("e-1", 1)]
    assert [o["offset"] for o in told["outcome"]] == [1, 2]
    (lead,) = await leads(pool, unique)
    assert (lead["version"], lead["attributes"]["first_name"]) == (1, "Ada")


async def test_a_redelivery_tells_the_same_event_again_and_changes_nothing(pool: asyncpg.Pool, unique: str) -> None:
    stage = intake(pool)
    batch = [
        message(payload("lead_updated", f"e-{n}", tenant=unique, email=f"{n % 2}@example.com", title=f"t{n}"), offset=n)
        for n in range(6)
    ]
    first = await put(stage, *batch)
    await put(stage, message(payload("lead_updated", "later", tenant=unique, email="1@example.com"), offset=9))
    before = await state(pool, unique)
    for again in (batch, batch[2:4], batch):
        told = await put(stage, *again)
        offsets = {m.offset() for m in again}
        expected = [c for c in first["lead_change"] if c["offset"] in offsets]
        part = [[{k: c[k] for k in EVENT_PART} for c in changes] for changes in (told["lead_change"], expected)]
        assert part[0] == part[1]
        assert told["outcome"] == []
        newest = {lead["lead_id"]: lead["version"] for lead in await leads(pool, unique)}
        assert {w["lead_id"]: w["version"] for w in told["crm_wanted"]} == newest
    assert await state(pool, unique) == before


async def test_a_redelivered_and_a_new_event_share_a_batch(pool: asyncpg.Pool, unique: str) -> None:
    stage = intake(pool)
    old = message(payload("lead_updated", "old", tenant=unique, email="a@example.com", title="one"), offset=1)
    newer = payload("lead_updated", "new", tenant=unique, email="a@example.com", title="two", at=NOW + 1)
    new = message(newer, offset=2)
    await put(stage, old)
    told = await put(stage, old, new)
    assert [(c["event_id"], c["version"]) for c in told["lead_change"]] == [("old", 1), ("new", 2)]
    assert [w["version"] for w in told["crm_wanted"]] == [2]
    assert (await leads(pool, unique))[0]["attributes"]["title"] == "two"


async def test_two_leads_become_one_and_all_of_it_is_written_down_and_told(pool: asyncpg.Pool, unique: str) -> None:
    stage = intake(pool)
    await put(stage, message(payload("page_viewed", "e-1", tenant=unique, anonymous_id="anon", url="/"), offset=1))
    known = payload("lead_updated", "e-2", tenant=unique, email="a@example.com", title="CTO")
    await put(stage, message(known, offset=2))
    first, second = await leads(pool, unique)
    both = payload("form_submitted", "e-3", tenant=unique, email="a@example.com", anonymous_id="anon")
    joining = message(both, offset=3)
    told = await put(stage, joining)
    (survivor,) = await leads(pool, unique)
    assert survivor["lead_id"] == first["lead_id"]
    assert (survivor["version"], survivor["attributes"]["title"]) == (2, "CTO")
    assert survivor["created_at"] == first["created_at"]
    (change,) = told["lead_change"]
    assert (change["lead_id"], change["version"], change["merged"]) == (first["lead_id"], 2, [second["lead_id"]])
    assert {w["lead_id"]: w["version"] for w in told["crm_wanted"]} == {first["lead_id"]: 2, second["lead_id"]: 2}
    stored = await state(pool, unique)
    assert {str(row[2]) for row in stored["identities"]} == {first["lead_id"]}
    assert [(str(a), str(b)) for a, b, *_ in stored["lead_aliases"]] == [(second["lead_id"], first["lead_id"])]
    row = await pool.fetchrow("SELECT * FROM lead_merges WHERE tenant = $1", unique)
    assert (str(row["survivor_id"]), str(row["loser_id"]), row["event_id"]) == (
        first["lead_id"],
        second["lead_id"],
        "e-3",
    )
    assert json.loads(row["identities"]) == [["email", "a@example.com"]]
    assert json.loads(row["loser"])["attributes"] == second["attributes"]
    assert json.loads(row["survivor"])["attributes"] == first["attributes"]
    loser = await pool.fetchrow("SELECT merged_into, version FROM leads WHERE lead_id = $1", second["lead_id"])
    assert (str(loser["merged_into"]), loser["version"]) == (first["lead_id"], 2)
    again = await put(stage, joining)
    assert [c["merged"] for c in again["lead_change"]] == [[second["lead_id"]]]
    assert {w["lead_id"] for w in again["crm_wanted"]} == {first["lead_id"], second["lead_id"]}
    assert await state(pool, unique) == stored


async def test_a_survivor_that_is_merged_later_takes_its_aliases_along(pool: asyncpg.Pool, unique: str) -> None:
    stage = intake(pool)

    async def seen(event_id: str, offset: int, **who: str) -> None:
        await put(stage, message(payload("lead_updated", event_id, tenant=unique, **who), offset=offset))

    for number, name in enumerate("abcd"):
        await seen(f"made-{name}", number, anonymous_id=name)
    oldest, *others = [lead["lead_id"] for lead in await leads(pool, unique)]
    for number, name in enumerate("cdba"):
        await seen(f"x-{name}", 10 + number, anonymous_id=name, external_id="x")
    (lead,) = await leads(pool, unique)
    assert lead["lead_id"] == oldest
    aliases = await pool.fetch("SELECT alias_id::text FROM lead_aliases WHERE lead_id = $1", oldest)
    assert {row[0] for row in aliases} == set(others)
    assert {str(row[2]) for row in (await state(pool, unique))["identities"]} == {oldest}


async def test_a_tenant_never_sees_anothers_lead(pool: asyncpg.Pool, unique: str) -> None:
    stage, one, two = intake(pool), f"{unique}-1", f"{unique}-2"
    same: dict[str, Any] = {"email": "a@example.com", "phone": "+442071838750", "crm_ids": {"hubspot": "5"}}
    told = await put(
        stage,
        message(payload("lead_updated", "e", tenant=one, title="of one", **same), offset=1),
        message(payload("lead_updated", "e", tenant=two, company="of two", **same), offset=2),
    )
    assert told["outcome"] == []
    (of_one,), (of_two,) = await leads(pool, one), await leads(pool, two)
    assert of_one["lead_id"] != of_two["lead_id"]
    assert "company" not in of_one["attributes"]
    assert "title" not in of_two["attributes"]
    for change in told["lead_change"]:
        assert json.loads(change["lead"])["tenant"] == change["tenant"]
        assert change["lead_id"] == (of_one if change["tenant"] == one else of_two)["lead_id"]
    wanted = {(w["tenant"], w["lead_id"]) for w in told["crm_wanted"]}
    assert wanted == {(one, of_one["lead_id"]), (two, of_two["lead_id"])}


# -- what is no event -------------------------------------------------------------------------------------------------


def changed(value: bytes, old: bytes, new: bytes) -> bytes:
    assert value.count(old) == 1
    assert len(old) == len(new)
    return value.replace(old, new)


def as_json(kind: str, **changes: Any) -> bytes:
    return orjson.dumps({"type": kind} | record("lead_updated", "e-json", email="a@example.com") | changes)


OWN: dict[str, Any] = {"score": 0.5, "source": "some-source", "crm_ids": {"hubspot": "123"}}
GOOD = payload("lead_updated", "e-1", email="a@example.com", **OWN)
RECORD = CODEC.encoder("crm_wanted")({"tenant": "t", "lead_id": "", "version": 1, "decided_at": 1})
BROKEN: list[tuple[Reason, bytes | None]] = [
    (Reason.EMPTY, None),
    (Reason.EMPTY, b""),
    (Reason.TOO_LARGE, b"{" + b" " * 65_536),
    (Reason.NOT_AVRO, b"hello"),
    (Reason.NOT_AVRO, b"\xc3\x01"),
    (Reason.NOT_AVRO, GOOD[:-3]),
    (Reason.NOT_AVRO, GOOD + b"\x00"),
    (Reason.NOT_AVRO, changed(GOOD, b"a@example.com", b"\xff@example.com")),
    (Reason.NOT_JSON, b"{not json"),
    (Reason.UNKNOWN_SCHEMA, b"\xc3\x01" + b"\x01" * 40),
    (Reason.UNKNOWN_SCHEMA, b"\x00\x7f\xff\xff\xff" + b"\x00" * 20),
    (Reason.UNKNOWN_EVENT_TYPE, as_json("lead_upgraded")),
    (Reason.UNKNOWN_EVENT_TYPE, RECORD),
    (Reason.INVALID_FIELD, as_json("lead_updated", employees="many")),
    (Reason.INVALID_FIELD, payload("lead_updated", "e-1", tenant="No Tenant", email="a@example.com")),
    (Reason.INVALID_FIELD, payload("lead_updated", "", email="a@example.com")),
    (Reason.INVALID_FIELD, payload("lead_updated", "e-1", email="nobody")),
    (Reason.INVALID_FIELD, payload("lead_updated", "e-1", email="a@example.com", title="a\0b")),
    # Postgres takes no NUL in a text, wherever it hides.
    (Reason.INVALID_FIELD, changed(GOOD, b"some-source", b"some\0source")),
    (Reason.INVALID_FIELD, changed(GOOD, b"123", b"1\x003")),
    (Reason.INVALID_FIELD, changed(GOOD, b"hubspot", b"hub\0pot")),
    (Reason.INVALID_FIELD, payload("lead_updated", "e-1", email="a@example.com", external_id="a\0")),
    (Reason.INVALID_FIELD, payload("lead_updated", "e-1", email="a@example.com", custom={"a\0": "b"})),
    # JSON, and so the lead's attributes, have neither of these.
    (Reason.INVALID_FIELD, changed(GOOD, struct.pack("<d", 0.5), struct.pack("<d", math.nan))),
    (Reason.INVALID_FIELD, changed(GOOD, struct.pack("<d", 0.5), struct.pack("<d", -math.inf))),
    (Reason.NO_IDENTIFIER, payload("lead_updated", "e-1")),
    (Reason.ABSURD_TIME, payload("lead_updated", "e-1", email="a@example.com", at=NOW // 1000)),
    (Reason.ABSURD_TIME, payload("lead_updated", "e-1", email="a@example.com", at=2**62)),
    (Reason.ABSURD_TIME, payload("lead_updated", "e-1", email="a@example.com", at=-(2**63))),
]


async def test_what_is_no_event_is_a_dead_letter_with_its_bytes_intact(pool: asyncpg.Pool, unique: str) -> None:
    good = [payload("lead_updated", f"g-{n}", tenant=unique, email="a@example.com") for n in range(2)]
    values: list[bytes | None] = [good[0], *(value for _, value in BROKEN), good[1]]
    headers = [("traceparent", b"00-1"), ("x", None), ("x", b"\xff")]
    found = [Message("leads.received", 5, n, b"key\xff", v, headers, None, (2, 1)) for n, v in enumerate(values)]
    stage = intake(pool)
    effects: Effects = await stage.apply(stage.prepare(found))
    letters = [output for output in effects.to_deliver() if output.topic == "leads.dead"]
    assert effects.dead == len(letters) == len(BROKEN)
    said = [{k: v for k, v in letter.headers or [] if k.startswith("leadstream.")} for letter in letters]
    assert [(each["leadstream.reason"].decode(), letter.value) for each, letter in zip(said, letters, strict=True)] == [
        (reason.value, value) for reason, value in BROKEN
    ]
    for number, (each, letter) in enumerate(zip(said, letters, strict=True), 1):
        assert letter.key == b"key\xff"
        assert (letter.headers or [])[:3] == headers
        assert (each["leadstream.topic"], each["leadstream.partition"]) == (b"leads.received", b"5")
        assert (each["leadstream.offset"], each["leadstream.stage"]) == (str(number).encode(), b"intake")
        assert each["leadstream.detail"]
        assert b"example.com" not in each["leadstream.detail"]
    assert (await leads(pool, unique))[0]["version"] == 2


async def test_a_lead_that_would_outgrow_a_record_of_kafka_takes_no_more_and_stops_nobody(
    pool: asyncpg.Pool, unique: str
) -> None:
    def growing(n: int) -> bytes:
        custom = {f"key-{n}-{k}": "x" * 8000 for k in range(7)}
        return payload("lead_updated", f"e-{n}", tenant=unique, email="grows@example.com", custom=custom)

    values = [growing(n) for n in range(24)]
    values.append(payload("lead_updated", "other", tenant=unique, email="other@example.com"))
    found = [message(value, offset=n) for n, value in enumerate(values)]
    stage = intake(pool)
    outcome: list[Effects] = [await stage.apply(stage.prepare(part)) for part in (found[:10], found[10:])]
    letters = [output for effects in outcome for output in effects.to_deliver() if output.topic == "leads.dead"]
    grown = next(lead for lead in await leads(pool, unique) if lead["email"] == "grows@example.com")
    assert grown["version"] == 24 - len(letters) > 10
    assert [letter.value for letter in letters] == values[24 - len(letters) : 24]
    assert {dict(letter.headers or [])["leadstream.reason"] for letter in letters} == {b"too_large"}
    assert max(len(o.value or b"") for effects in outcome for o in effects.to_deliver()) < 4_194_304
    assert len(await leads(pool, unique)) == 2


async def test_a_batch_of_nothing_but_dead_letters_needs_no_database() -> None:
    async with open_pool("postgresql://leadstream@127.0.0.1:1/leadstream") as away:
        stage = intake(away)
        effects = await stage.apply(stage.prepare([message(b"hello")]))
        assert effects.dead == len(effects.to_deliver()) == 1


LIMIT = 1 << 20  # of a lead, in bytes of JSON
LARGEST = {name: int(topic.config["max.message.bytes"]) for name, topic in topics().items()}


async def offer(stage: Intake, *values: bytes) -> dict[str, str]:
    """Take one batch; return the ids of its dead letters with their reasons, and look that all told fits its topic."""
    found = [message(value, offset=n) for n, value in enumerate(values)]
    outputs: Sequence[Output] = (await stage.apply(stage.prepare(found))).to_deliver()
    for output in outputs:
        assert len(output.value or b"") + 1000 < LARGEST[output.topic]
    dead = [output for output in outputs if output.topic == "leads.dead"]
    ids = [CODEC.decode(output.value or b"").record["envelope"]["event_id"] for output in dead]
    return {n: dict(o.headers or [])["leadstream.reason"].decode() for n, o in zip(ids, dead, strict=True)}


def large(event_id: str, tenant: str, size: int, letter: str = "x", kind: str = "lead_updated", **own: Any) -> bytes:
    """Return an event of about ``size`` bytes, as JSON, of values that no other event has."""
    each = 8000 * len(json.dumps(letter, ensure_ascii=False).encode().strip(b'"'))
    name = "answers" if kind == "form_submitted" else "custom"
    values = {f"{event_id}-{n}": letter * 8000 for n in range(size // each)}
    return payload(kind, event_id, tenant=tenant, **{name: values}, **own)


@pytest.mark.parametrize("letter", ["x", "\x01", "\u6f22"], ids=["ascii", "escaped", "three bytes"])
async def test_an_event_too_large_for_any_lead_leaves_nothing_behind(
    pool: asyncpg.Pool, unique: str, letter: str
) -> None:
    stage = intake(pool, max_event_bytes=2 * LIMIT)
    first = large("e-1", unique, LIMIT + 50_000, letter, email="a@example.com", external_id="a")
    small = payload("lead_updated", "e-2", tenant=unique, email="a@example.com", first_name="Ada")

    assert await offer(stage, first, small) == {"e-1": "too_large"}
    (lead,) = await leads(pool, unique)
    assert (lead["version"], lead["attributes"]["first_name"]) == (1, "Ada")
    assert [row[:2] for row in (await state(pool, unique))["identities"]] == [("email", "a@example.com")]
    assert await offer(stage, first) == {"e-1": "too_large"}


async def test_leads_that_would_be_too_large_together_stay_two(pool: asyncpg.Pool, unique: str) -> None:
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


async def test_an_erasure_that_joins_leads_too_large_together_is_dead(pool: asyncpg.Pool, unique: str) -> None:
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


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_bytes_make_prepare_fail(data: st.DataObject) -> None:
    value = bytearray(GOOD)
    for place, byte in data.draw(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=4)):
        value[place] = byte
    stage = Intake(None, CODEC, Router(CODEC, [], frozenset()), max_event_bytes=65_536, max_ahead_s=0)
    prepared = stage.prepare([message(bytes(value)), message(data.draw(st.binary(max_size=64)))])
    assert len(prepared.dead) + len(prepared.events) == 2


async def test_what_is_taken_for_an_event_is_never_refused_by_the_database(pool: asyncpg.Pool, unique: str) -> None:
    """Or one event would stop everybody's."""
    rng = random.Random(17)
    stage = intake(pool)
    taken = 0
    for number in range(40):
        values = []
        for each in range(50):
            email = f"{each}@example.com"
            value = bytearray(payload("lead_updated", f"e-{number}-{each}", tenant=unique, email=email, **OWN))
            for _ in range(rng.randint(1, 3)):
                value[rng.randrange(10, len(value))] = rng.choice((0, 1, 2, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            values.append(bytes(value))
        prepared = stage.prepare([message(v, offset=number * 50 + n) for n, v in enumerate(values)])
        taken += len(prepared.events)
        await stage.apply(prepared)
    assert taken > 100


async def test_postgres_away_is_a_dependency_away(unique: str) -> None:
    async with open_pool("postgresql://leadstream@127.0.0.1:1/leadstream") as away:
        with pytest.raises(DependencyAway, match="Postgres"):
            await put(intake(away), message(payload("lead_updated", tenant=unique, email="a@example.com")))


# -- whatever the order, and together ---------------------------------------------------------------------------------


def crowd(rng: random.Random, tenant: str, count: int) -> list[bytes]:
    """Return events of a few people, some of which only later prove to be one."""
    made = []
    for number in range(count):
        who = rng.randrange(6)
        ids: dict[str, Any] = {"email": f"p{who}@example.com", "anonymous_id": f"a{who}", "external_id": f"x{who // 2}"}
        said = {name: ids[name] for name in rng.sample(sorted(ids), rng.choice((1, 1, 1, 2)))}
        own: dict[str, Any] = {"at": NOW - rng.randrange(4) * HOUR, "tenant": tenant, **said}
        kind = rng.choice(["lead_updated", "form_submitted", "enrichment_completed", "page_viewed", "consent_changed"])
        if rng.random() < 0.1:
            kind = "lead_erased"
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
    """Hold the database to what the merge rule alone makes of all ``values``; return the leads without their ids."""
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
async def test_any_order_and_cut_of_batches_gives_the_same_leads(stack: Stack, seed: int) -> None:
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


async def test_the_months_to_come_are_made_at_the_start_and_every_day(pool: asyncpg.Pool, unique: str) -> None:
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


async def test_two_workers_at_a_months_turn_accept_an_event_once(pool: asyncpg.Pool, unique: str) -> None:
    turn = (datetime.now(UTC).replace(day=1) + timedelta(days=32)).replace(day=1, hour=0, minute=0, second=0)
    before, after = ((turn + timedelta(seconds=s)).timestamp() for s in (-2, 2))
    stages = [intake(pool, now=lambda at=at: int(at * 1e6)) for at in (before, after)]
    await put(stages[0], message(payload("page_viewed", "e-0", tenant=unique, email="ada@example.com")))
    for number in range(1, 11):  # the lead is there, so that its identity does not make one of them wait
        value = payload("page_viewed", f"e-{number}", tenant=unique, email="ada@example.com")

        told = await asyncio.gather(*(put(stage, message(value, partition=n)) for n, stage in enumerate(stages)))

        assert sorted((len(each["lead_change"]), len(each["outcome"])) for each in told) == [(0, 1), (1, 0)]


async def take(pool: asyncpg.Pool, partition: int, values: list[bytes]) -> list[dict[str, list[dict[str, Any]]]]:
    """Take all of a partition in small batches and return what each told."""
    stage = intake(pool)
    found = [message(value, offset=n, partition=partition) for n, value in enumerate(values)]
    return [await put(stage, *found[start : start + 3]) for start in range(0, len(found), 3)]


async def test_workers_that_meet_the_same_people_lose_no_update(
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
            parts = await asyncio.gather(*(take(pool, n, feeds[n]) for n, pool in enumerate((one, two, three))))
            told = [each for part in parts for each in part]
            await check(one, tenant, values)
            rows = "SELECT event_id, lead_id::text, version FROM lead_history WHERE tenant = $1"
            history = sorted(tuple(row) for row in await one.fetch(rows, tenant))
            assert (
                sorted((c["event_id"], c["lead_id"], c["version"]) for t in told for c in t["lead_change"]) == history
            )
            assert sum(len(each["outcome"]) for each in told) == 15
    assert "contended" in caplog.messages  # or they did not meet
