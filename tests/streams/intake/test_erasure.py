"""Erasures on a real Postgres: canaries in every table, what comes late, who comes back, and workers that meet."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest
from confluent_kafka import Message

from infra.kafka.dead_letters import TOPIC as DEAD
from infra.settings import SettingsError
from streams.intake.store import Store
from streams.intake.suppression_key import load_key
from tests.events import HOUR, NOW, message, payload
from tests.streams.intake.conftest import intake, leads, put

pytestmark = pytest.mark.integration

CANARY = "canary"
_TABLES = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' AND table_type = 'BASE TABLE'"


async def found(pool: asyncpg.Pool, word: str) -> dict[str, int]:
    """Return the number of rows of each table that contain ``word``."""
    counts = {}
    for (table,) in await pool.fetch(_TABLES):
        rows = await pool.fetchval(f'SELECT count(*) FROM "{table}" t WHERE t::text ILIKE $1', f"%{word}%")  # noqa: S608
        counts[table] = rows
    return {table: rows for table, rows in counts.items() if rows}


class Feed:
    """Makes messages of one tenant, in order."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.number = 0

    def __call__(self, kind: str, at: int = 0, **own: Any) -> Message:
        self.number += 1
        value = payload(kind, f"e-{self.number}", tenant=self.tenant, at=NOW + at * HOUR, **own)
        return message(value, offset=self.number, at=NOW + 99 * HOUR)


@pytest.fixture
def feed(unique: str) -> Feed:
    return Feed(unique)


def reasons(published: dict[str, list[Any]]) -> list[str]:
    return [dict(letter.headers)["leadstream.reason"].decode() for letter in published[DEAD]]


@pytest.mark.parametrize("size", [1, 100], ids=["an event a batch", "one batch"])
async def test_nothing_of_an_erased_person_stays(pool: asyncpg.Pool, feed: Feed, unique: str, size: int) -> None:
    word = f"{CANARY}{unique}"
    ids = {"email": f"{word}@example.com", "external_id": f"x-{word}", "anonymous_id": f"a-{word}"}
    other = {"email": f"friend-{unique}@example.com"}
    events = [
        feed("lead_updated", email=ids["email"], first_name=word, custom={"k": word}),
        feed("lead_updated", external_id=ids["external_id"], last_name=word),
        feed("page_viewed", 1, anonymous_id=ids["anonymous_id"], url="/"),
        feed("lead_updated", 2, email=ids["email"], external_id=ids["external_id"], title=word),  # merges two
        feed("lead_updated", 2, email=ids["email"], anonymous_id=ids["anonymous_id"]),
        feed("lead_updated", 2, **other, phone="+442079460123"),
        feed("lead_updated", 2, email=ids["email"], phone="+442079460123"),  # refused: another person's phone
        feed("lead_erased", 3, email=ids["email"]),
    ]
    late = [
        feed("lead_updated", 2, email=ids["email"], first_name=word),
        feed("lead_updated", 4, external_id=ids["external_id"], first_name=word),
        feed("page_viewed", 4, anonymous_id=ids["anonymous_id"], url="/"),
        feed(
            "enrichment_completed", 4, email=ids["email"], provider="pdl", title=word, source="leadstream:enrichment:p"
        ),
        feed("crm_record_changed", 2, email=ids["email"], crm="hubspot", record_id="7", title=word),
        feed("consent_changed", 2, email=ids["email"], purpose="marketing", status="granted"),  # before the erasure
    ]
    stage, made = intake(pool, max_ahead_s=10**9), [*events, *late]
    dead: list[str] = []
    for start in range(0, len(made), size):
        dead += reasons(await put(stage, *made[start : start + size]))

    assert dead == ["suppressed"] * len(late)
    assert await found(pool, word) == {}
    assert len(await leads(pool, unique)) == 2, "the friend, and the empty lead"
    assert sorted(reasons(await put(stage, *made))) == dead, "redeliveries"
    assert await found(pool, word) == {}
    stores = await pool.fetch("SELECT store, done_at IS NOT NULL FROM erasures WHERE tenant = $1 ORDER BY 1", unique)
    assert [tuple(row) for row in stores] == [("clickhouse", False), ("leads", True), ("work", False)]


@pytest.mark.parametrize("size", [1, 100], ids=["an event a batch", "one batch"])
async def test_the_persons_new_consent_begins_a_new_lead(
    pool: asyncpg.Pool, feed: Feed, unique: str, size: int
) -> None:
    who = {"email": f"ada-{unique}@example.com"}
    made = [
        feed("lead_updated", 0, **who, first_name="Before"),
        feed("lead_erased", 3, **who),
        feed("lead_updated", 4, **who, first_name="Without"),
        feed("consent_changed", 5, **who, purpose="marketing", status="withdrawn"),
        feed("consent_changed", 5, **who, purpose="marketing", status="granted"),
        feed("lead_updated", 6, **who, first_name="After"),
        feed("lead_updated", 2, **who, title="Before"),
        feed("enrichment_completed", 6, **who, provider="pdl", asked_at=NOW + 2 * HOUR, title="Before"),
        feed("enrichment_completed", 6, **who, provider="pdl", asked_at=NOW + 6 * HOUR, company="After"),
    ]
    stage = intake(pool, max_ahead_s=10**9)
    dead: list[str] = []
    for start in range(0, len(made), size):
        dead += reasons(await put(stage, *made[start : start + size]))

    assert dead == ["suppressed"] * 4
    empty, lead = await leads(pool, unique)
    assert empty["attributes"] == {}
    known = {name: lead["attributes"].get(name) for name in ("first_name", "company", "title")}
    assert known == {"first_name": "After", "company": "After", "title": None}
    assert lead["erased_at"] == NOW + 3 * HOUR


async def test_people_who_share_a_weak_identity_with_an_erased_person_go_on(
    pool: asyncpg.Pool, feed: Feed, unique: str
) -> None:
    desk = {"phone": "+442079460199", "anonymous_id": f"kiosk-{unique}"}
    stage = intake(pool, max_ahead_s=10**9)
    await put(stage, feed("lead_updated", 0, email=f"ada-{unique}@example.com", **desk))
    await put(stage, feed("lead_erased", 1, email=f"ada-{unique}@example.com"))
    assert reasons(await put(stage, feed("page_viewed", 2, anonymous_id=desk["anonymous_id"], url="/"))) == [
        "suppressed"
    ]

    published = await put(stage, feed("lead_updated", 0, email=f"bob-{unique}@example.com", **desk))
    published |= await put(stage, feed("page_viewed", 2, anonymous_id=desk["anonymous_id"], url="/"))

    assert reasons(published) == []
    empty, bob = await leads(pool, unique)
    assert empty["attributes"] == {}
    assert (bob["email"], bob["version"]) == (f"bob-{unique}@example.com", 2)


async def test_an_erasure_that_arrives_late_keeps_what_was_said_after_it(
    pool: asyncpg.Pool, feed: Feed, unique: str
) -> None:
    before, after = f"{CANARY}{unique}@example.com", f"after-{unique}@example.com"
    stage = intake(pool, max_ahead_s=10**9)
    await put(stage, feed("lead_updated", 0, email=before, external_id=f"u-{unique}", title=CANARY + unique))
    await put(stage, feed("lead_updated", 5, email=after, external_id=f"u-{unique}"))
    await put(stage, feed("lead_erased", 3, email=before))
    (lead,) = await leads(pool, unique)
    assert (lead["attributes"]["email"], lead["attributes"]["external_id"]) == (after, f"u-{unique}")
    assert await found(pool, CANARY + unique) == {}
    assert reasons(await put(stage, feed("lead_updated", 6, external_id=f"u-{unique}", company="Known"))) == []
    assert reasons(await put(stage, feed("lead_updated", 2, external_id=f"u-{unique}", company="Old"))) == [
        "suppressed"
    ]
    assert (await leads(pool, unique))[0]["attributes"]["company"] == "Known"


async def test_erasing_again_and_erasing_somebody_unknown_are_recorded_once(
    pool: asyncpg.Pool, feed: Feed, unique: str
) -> None:
    stage = intake(pool, max_ahead_s=10**9)
    for at in (1, 3, 2):
        assert reasons(await put(stage, feed("lead_erased", at, email=f"ada-{unique}@example.com"))) == []
    (lead,) = await leads(pool, unique)
    assert (lead["version"], lead["erased_at"]) == (3, NOW + 3 * HOUR)
    assert await pool.fetchval("SELECT erased_at FROM suppressions WHERE tenant = $1", unique) == NOW + 3 * HOUR


async def test_workers_that_meet_at_an_erasure_leave_nothing_behind(
    pool: asyncpg.Pool, feed: Feed, unique: str
) -> None:
    stages = [intake(pool, max_ahead_s=10**9) for _ in range(3)]
    for turn in range(15):
        word = f"{CANARY}{turn}-{unique}"
        who = {"email": f"{word}@example.com"}
        if turn % 2:
            await put(stages[0], feed("lead_updated", 0, **who, first_name=word))
        await asyncio.gather(
            put(stages[0], feed("lead_updated", 1, **who, title=word)),
            put(stages[1], feed("lead_erased", 2, **who)),
            put(stages[2], feed("lead_updated", 0, **who, company=word)),
        )
        assert await found(pool, word) == {}, turn


async def test_a_lead_that_an_earlier_version_erased_loses_what_was_kept(
    pool: asyncpg.Pool, feed: Feed, unique: str
) -> None:
    word = f"{CANARY}{unique}"
    who = {"email": f"{word}@example.com"}
    await put(intake(pool, max_ahead_s=10**9), feed("lead_updated", 0, **who), feed("lead_erased", 1, **who))
    lead_id = await pool.fetchval("SELECT lead_id FROM leads WHERE tenant = $1", unique)
    await pool.execute("DELETE FROM suppressions WHERE tenant = $1", unique)
    await pool.execute("DELETE FROM erasures WHERE tenant = $1", unique)
    await pool.execute("INSERT INTO identities VALUES ($1, 'email', $2, $3)", unique, who["email"], lead_id)
    await pool.execute("UPDATE lead_history SET changes = $2 WHERE tenant = $1 AND version = 1", unique, f'"{word}"')

    assert reasons(await put(intake(pool, max_ahead_s=10**9), feed("lead_updated", 2, **who))) == ["suppressed"]

    assert await found(pool, word) == {}


async def test_another_key_than_the_one_of_the_list_is_refused(pool: asyncpg.Pool, feed: Feed) -> None:
    key = await load_key(pool, "")
    identity = ("acme", "email", "ada@example.com")
    assert (await load_key(pool, "")).hash(identity) == key.hash(identity)
    with pytest.raises(SettingsError, match="LEADSTREAM_SUPPRESSION_KEY"):
        await load_key(pool, "another key, which is long enough")
    stage = intake(Store(pool, suppression_key="another key, which is long enough"))
    with pytest.raises(SettingsError):
        await put(stage, feed("page_viewed", email="a@x.com", url="/"))
