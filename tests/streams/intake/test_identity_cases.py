"""Who is who, with a real Postgres: inputs that once made one lead of strangers, or several of one person."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import asyncpg
import pytest

from streams.intake.identity_policy import IdentityPolicy
from streams.intake.store import Store
from tests.events import NOW, message, payload
from tests.streams.intake.conftest import intake, leads, put

pytestmark = pytest.mark.integration

ZEROS = "00000000-0000-0000-0000-000000000000"
Who = dict[str, Any]
NOBODY: list[Who] = [
    {"anonymous_id": "null"}, {"anonymous_id": "null"}, {"external_id": "undefined"}, {"external_id": "undefined"},
    {"phone": "+1 111 111 1111"}, {"phone": "+1 (111) 111-1111"}, {"anonymous_id": ZEROS}, {"anonymous_id": ZEROS},
    {"crm_ids": {"hubspot": "null"}}, {"crm_ids": {"hubspot": "None"}}, {"external_id": "0"},
    {"external_id": "[object Object]"}, {"external_id": "(null)"},
]  # fmt: skip


def said(tenant: str, *people: Who) -> list[Any]:
    """Return a message for each of ``people``, as JSON: what a sender writes, before anything is normalised."""
    found: list[Any] = []
    for number, who in enumerate(people):
        envelope = {"event_id": f"e-{number}", "tenant": tenant, "occurred_at": NOW, "source": "web"}
        event = {"type": "lead_created", "envelope": envelope, "identifiers": who}
        found.append(message(json.dumps(event).encode(), offset=number))
    return found


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(
    ("people", "count"),
    [
        pytest.param([{"email": f"{n}@example.com"} | who for n, who in enumerate(NOBODY)], 13, id="placeholders"),
        pytest.param([
            {"external_id": "user-1", "email": "ada@example.com", "anonymous_id": "reception-tablet"},
            {"external_id": "user-2", "email": "bob@example.com", "anonymous_id": "reception-tablet"},
        ], 2, id="shared browser"),
        pytest.param([
            {"email": "ada@example.com", "phone": "+1 650 253 0000 x101"},
            {"email": "bob@example.com", "phone": "+1 650 253 0000 ext. 102"},
            {"email": "cyd@example.com", "phone": "tel:+16502530000;ext=103"},
            {"phone": "+1 (650) 253-0000 ext 103"},
        ], 3, id="extensions"),
        pytest.param([
            {"phone": "+52 55 1234 5678"}, {"phone": "+52 1 55 1234 5678"}, {"phone": "+54 9 11 2345 6789"},
            {"phone": "+54 11 2345 6789"}, {"phone": "00442071838750"}, {"phone": "+44 (0)20 7183 8750"},
        ], 3, id="spellings of a number"),
        pytest.param([{"email": email} for email in [
            "ada@example.com", "\ufeffada@example.com", "ada@example.com\u200b", "<ada@example.com>",
            "mailto:ada@example.com", "ada@example.com,", "\u00a0Ada@Example.com\u00a0", "Ada <ada@example.com>",
        ]], 1, id="spellings of an address"),
        pytest.param([{"crm_ids": {"salesforce": one}} for one in [
            "003D000000QV9n2", "003D000000QV9n2IAD", "003D000000QV9N2", "003d000000qv9n2iad",
        ]], 2, id="Salesforce ids"),
        pytest.param([{"email": email} for email in [
            "jos\u00e9@example.com", "jose\u0301@example.com", "ada@m\u00fcnchen.example",
            "ada@xn--mnchen-3ya.example",
        ]], 2, id="Unicode forms"),
    ],
)  # fmt: skip
async def test_people_and_leads_correspond(
    pool: asyncpg.Pool, unique: str, people: list[Who], count: int, together: bool
) -> None:
    stage = intake(pool)
    messages = said(unique, *people)
    for batch in [messages] if together else [[one] for one in messages]:
        assert not (await put(stage, *batch))["leads.dead"]
    found = await leads(pool, unique)
    assert len(found) == count
    assert sum(lead["version"] for lead in found) == len(people)


async def test_an_event_of_nobody_is_dead_and_says_why(pool: asyncpg.Pool, unique: str) -> None:
    policy = IdentityPolicy(placeholders=frozenset({"walk-in"}))
    stage = intake(pool, policies=lambda _: policy)
    nobody = [{"external_id": "undefined"}, {"phone": "+1 111 111 1111"}, {"email": "test@test.com"}]
    published = await put(stage, *said(unique, *nobody, {"external_id": "Walk-In"}))
    headers = [dict(letter.headers) for letter in published["leads.dead"]]
    assert [each["leadstream.reason"] for each in headers] == [b"no_identifier"] * 4
    assert all(b"stands for no value" in each["leadstream.detail"] for each in headers[:3])
    assert b"tenant's file" in headers[3]["leadstream.detail"]


@pytest.mark.parametrize(
    "shared", [{"phone": "+44 20 7183 8750"}, {"anonymous_id": "kiosk"}, {"email": "info@example.com"}]
)
async def test_ten_thousand_people_who_share_something_stay_apart(pool: asyncpg.Pool, unique: str, shared: Who) -> None:
    stage = intake(pool)
    for start in range(0, 10_000, 2000):
        values = [
            payload("page_viewed", f"e-{n}", tenant=unique, external_id=f"person-{n}", url="/", **shared)
            for n in range(start, start + 2000)
        ]
        published = await put(stage, *[message(value, offset=start + n) for n, value in enumerate(values)])
    refused = [each for each in published["outcome"] if each["what"] == "refused"]
    assert {(each["reason"], each["version"]) for each in refused} == {("shared_identity", 0)}
    assert len(refused) == 2000
    counts = await pool.fetchrow(
        "SELECT count(*), sum(version) FROM leads WHERE tenant = $1 AND merged_into IS NULL", unique
    )
    reviews = await pool.fetchval("SELECT count(*) FROM merge_reviews WHERE tenant = $1", unique)
    assert (*counts, reviews) == (10_000, 10_000, 9999)


async def test_a_refusal_is_reported_once_and_again_after_a_crash(pool: asyncpg.Pool, unique: str) -> None:
    stage = intake(pool)
    people = [{"external_id": name, "anonymous_id": "kiosk"} for name in ("u1", "u2", "u2")]
    messages = said(unique, *people)
    reported = [
        [each["event_id"] for each in (await put(stage, *batch))["outcome"] if each["what"] == "refused"]
        for batch in (messages[:1], messages[1:2], messages[2:], messages)
    ]
    assert reported == [[], ["e-1"], [], ["e-1"]]


async def test_two_workers_never_give_one_anonymous_lead_to_two_people(pool: asyncpg.Pool, unique: str) -> None:
    """Both claim the lead at the same time: one of them gets it, the other one is told apart."""
    for attempt in range(20):
        tenant = f"{unique}-{attempt}"
        await put(intake(pool), *said(tenant, {"anonymous_id": "tablet"}))
        claims = [
            put(
                intake(Store(pool)),
                message(
                    payload("page_viewed", f"c-{n}", tenant=tenant, external_id=f"u{n}", anonymous_id="tablet"),
                    partition=n + 1,
                ),
            )
            for n in range(2)
        ]
        await asyncio.gather(*claims)
        rows = await pool.fetch("SELECT lead_id FROM identities WHERE tenant = $1 AND kind = 'external_id'", tenant)
        assert len({row[0] for row in rows}) == 2
