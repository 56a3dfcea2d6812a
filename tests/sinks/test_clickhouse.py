"""The ClickHouse sink with a real ClickHouse: each record is one row, in any order, batching and repetition."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from confluent_kafka import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.clickhouse.client import ClickHouse, ClickHouseError
from infra.errors import DependencyUnavailable
from infra.kafka.dead_letters import TOPIC as DEAD
from infra.kafka.dead_letters import dead_letter
from infra.kafka.producer import Output
from infra.outcomes import Dead, Problem, Reason
from schemas.codec import HEADER
from sinks.clickhouse import ClickHouseSink
from tests.conftest import Stack, outputs_of
from tests.events import CODEC, NOW

pytestmark = pytest.mark.integration

AGAIN = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
async def server(stack: Stack) -> AsyncIterator[ClickHouse]:
    async with ClickHouse(stack.clickhouse_url) as server:
        yield server


@pytest.fixture
def sink(server: ClickHouse) -> ClickHouseSink:
    return ClickHouseSink(server, CODEC)


def change(tenant: str, number: int, **own: Any) -> bytes:
    """Return the lead_change of a lead of its own, or of ``lead_id`` at ``version``."""
    lead_id = own.pop("lead_id", str(uuid.UUID(int=number + 1)))
    version = own.pop("version", 1)
    lead = {"lead_id": lead_id, "tenant": tenant, "version": version, "created_at": NOW, "updated_at": NOW + version}
    lead |= {"email": f"{number}@example.com", "custom": {"n": str(number)}} | own.pop("lead", {})
    record = {
        "tenant": tenant,
        "event_id": f"e-{number}",
        "event_type": "form_submitted",
        "source": "web",
        "own": False,
        "lead_id": lead_id,
        "version": version,
        "occurred_at": NOW + number,
        "received_at": NOW,
        "decided_at": NOW,
        "topic": "leads.received",
        "partition": 0,
        "offset": number,
        "properties": "{}",
        "changes": json.dumps({"email": f"{number}@example.com"}),
        "merged": own.pop("merged", []),
        "lead": json.dumps(lead),
    }
    return CODEC.encoder("lead_change")(record | own)


def outcome(tenant: str, number: int, **own: Any) -> bytes:
    record = {"at": NOW, "stage": "intake", "what": "duplicate", "reason": "duplicate_event", "tenant": tenant}
    return CODEC.encoder("outcome")(record | {"event_id": f"e-{number}", "offset": number} | own)


def messages(
    *values: bytes, topic: str = "leads.changed", start: int = 0, headers: list[tuple[str, bytes]] | None = None
) -> list[Message]:
    return [
        Message(topic, 3, start + i, None, value, headers, None, (2, NOW // 1000)) for i, value in enumerate(values)
    ]


async def put(sink: ClickHouseSink, found: list[Message]) -> list[Output]:
    return await outputs_of(sink.apply(sink.prepare(found)))


async def count(server: ClickHouse, table: str, tenant: str) -> int:
    rows = await server.query(f"SELECT count() AS n FROM {table} WHERE tenant = {{t:String}}", t=tenant)  # noqa: S608 - a name of ours
    return int(rows[0]["n"])


async def test_a_change_is_a_row_of_events_and_the_state_of_its_lead(
    server: ClickHouse, sink: ClickHouseSink, unique: str
) -> None:
    loser = str(uuid.uuid4())
    known = {"first_name": "Zoë", "employees": 42, "score": 0.5, "consent": {"marketing": "granted"}, "crm_ids": {}}
    value = change(unique, 7, lead=known, merged=[loser], own=True, changes='{"first_name":"Zoë"}')
    assert await put(sink, messages(value)) == []
    rows = await server.query("SELECT * FROM lead_events WHERE tenant = {t:String}", t=unique)
    assert len(rows) == 1
    (event,) = rows
    assert (event["event_id"], event["lead_id"], event["version"]) == ("e-7", str(uuid.UUID(int=8)), 1)
    assert (event["own"], event["merged"], event["changes"]) == (True, [loser], '{"first_name":"Zoë"}')
    assert (event["topic"], event["partition"], event["offset"]) == ("leads.received", 0, 7)
    assert event["occurred_at"] == "2026-02-02 02:40:00.000007"
    (lead,) = await server.query("SELECT * FROM leads WHERE tenant = {t:String}", t=unique)
    assert (lead["email"], lead["first_name"], lead["employees"], lead["score"]) == ("7@example.com", "Zoë", 42, 0.5)
    assert (lead["consent"], lead["custom"], lead["version"]) == ({"marketing": "granted"}, {"n": "7"}, 1)
    assert (lead["phone"], lead["updated_at"]) == ("", "2026-02-02 02:40:00.000001")


async def test_outcomes_and_dead_letters_are_rows_too(server: ClickHouse, sink: ClickHouseSink, unique: str) -> None:
    start = uuid.uuid4().int % 2**60
    dying = Message("leads.received", 5, start, b"k", b"\xff\x00 bytes", [("traceparent", b"00-x")], None, (2, 1))
    dead = dead_letter(dying, "intake", Dead(Reason.NOT_AVRO, (Problem("/a", "is wrong"),)))
    letter = Message(DEAD, 1, start + 9, dead.key, dead.value, dead.headers, None, (2, NOW // 1000))
    await put(sink, [*messages(outcome(unique, 1), topic="leads.outcomes", start=start), letter])
    (outcome_row,) = await server.query("SELECT * FROM outcomes WHERE tenant = {t:String}", t=unique)
    assert tuple(outcome_row[name] for name in ("stage", "what", "reason", "event_id")) == (
        "intake",
        "duplicate",
        "duplicate_event",
        "e-1",
    )
    (row,) = await server.query("SELECT * FROM dead_letters WHERE offset = {o:Int64}", o=start)
    assert (row["stage"], row["reason"], row["detail"]) == ("intake", "not_avro", "/a: is wrong")
    assert (row["topic"], row["partition"], row["dead_partition"]) == ("leads.received", 5, 1)
    assert (row["dead_offset"], row["size"]) == (start + 9, 8)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("leadstream.at", b"9" * 40), ("leadstream.partition", b"9" * 40), ("leadstream.offset", b"-1e9")],
        [("leadstream.at", b"now"), ("leadstream.partition", b"4294967296"), ("leadstream.reason", b"\xff\xfe")],
        [("leadstream.at", b"999999999999999999"), ("leadstream.stage", b"\x00\x00"), ("other", b"")],
    ],
)
async def test_a_dead_letter_with_foreign_headers_stops_nothing(
    server: ClickHouse, sink: ClickHouseSink, headers: list[tuple[str, bytes]]
) -> None:
    start = uuid.uuid4().int % 2**60
    effects = await put(sink, messages(b"x", topic=DEAD, start=start, headers=headers))
    assert effects == []
    assert await server.query("SELECT size FROM dead_letters WHERE dead_offset = {o:Int64}", o=start) == [{"size": 1}]


async def test_a_repeated_batch_is_not_stored_again(server: ClickHouse, sink: ClickHouseSink, unique: str) -> None:
    batch = messages(*(change(unique, n) for n in range(50)), start=uuid.uuid4().int % 2**60)
    batch += messages(*(outcome(unique, n) for n in range(20)), topic="leads.outcomes", start=uuid.uuid4().int % 2**60)
    for _ in range(3):
        assert await put(sink, batch) == []
    assert await count(server, "lead_events_store", unique) == 50
    assert await count(server, "leads_store", unique) == 50
    assert await count(server, "outcomes_store", unique) == 20


@AGAIN
@given(data=st.data())
async def test_in_any_batching_and_repetition_each_record_is_one_row(stack: Stack, data: st.DataObject) -> None:
    tenant = uuid.uuid4().hex
    start = uuid.uuid4().int % 2**60
    of_leads = messages(*(change(tenant, n) for n in range(12)), start=start)
    of_outcomes = messages(*(outcome(tenant, n) for n in range(12)), topic="leads.outcomes", start=start)
    cuts = data.draw(st.lists(st.tuples(st.integers(0, 11), st.integers(1, 12)), max_size=6))
    async with ClickHouse(stack.clickhouse_url) as server:
        sink = ClickHouseSink(server, CODEC)
        for first, length in [(0, 5), *cuts, (5, 12)]:
            piece = slice(first, first + length)
            assert await put(sink, of_leads[piece] + of_outcomes[piece]) == []
        for table in ("lead_events", "leads", "outcomes"):
            assert await count(server, table, tenant) == 12, table


@AGAIN
@given(order=st.permutations(range(1, 7)), cut=st.integers(1, 5))
async def test_the_newest_version_of_a_lead_wins_in_any_order(stack: Stack, order: list[int], cut: int) -> None:
    tenant, lead_id = uuid.uuid4().hex, str(uuid.uuid4())
    changes = [change(tenant, v, lead_id=lead_id, version=v, lead={"title": f"title {v}"}) for v in order]
    start = uuid.uuid4().int % 2**60
    async with ClickHouse(stack.clickhouse_url) as server:
        sink = ClickHouseSink(server, CODEC)
        await put(sink, messages(*changes[:cut], start=start))
        await put(sink, messages(*changes[cut:], start=start + cut))
        rows = await server.query("SELECT version, title FROM leads WHERE tenant = {t:String}", t=tenant)
        assert rows == [{"version": 6, "title": "title 6"}]
        assert await count(server, "lead_events", tenant) == 6


@pytest.mark.parametrize("late", [False, True])
async def test_a_merged_lead_is_not_shown_also_if_its_own_records_come_late(
    server: ClickHouse, sink: ClickHouseSink, unique: str, late: bool
) -> None:
    loser, survivor = str(uuid.uuid4()), str(uuid.uuid4())
    of_loser = [change(unique, v, lead_id=loser, version=v) for v in (1, 2)]
    merging = change(unique, 3, lead_id=survivor, merged=[loser])
    start = uuid.uuid4().int % 2**60
    for number, value in enumerate([merging, *of_loser] if late else [*of_loser, merging]):
        await put(sink, messages(value, start=start + number))
    rows = await server.query("SELECT toString(lead_id) AS lead FROM leads WHERE tenant = {t:String}", t=unique)
    assert rows == [{"lead": survivor}]
    assert await count(server, "lead_events", unique) == 3


async def test_two_reasons_about_one_record_are_two_outcomes(
    server: ClickHouse, sink: ClickHouseSink, unique: str
) -> None:
    common = {"stage": "campaigns", "what": "skipped", "lead_id": str(uuid.uuid4()), "topic": "t", "partition": 0}
    values = [outcome(unique, 1, reason=reason, **common) for reason in ("no_consent", "already_asked", "no_consent")]
    await put(sink, messages(*values, topic="leads.outcomes", start=uuid.uuid4().int % 2**60))
    rows = await server.query("SELECT reason FROM outcomes WHERE tenant = {t:String} ORDER BY reason", t=unique)
    assert [row["reason"] for row in rows] == ["already_asked", "no_consent"]


async def test_foreign_payloads_are_dead_letters_and_the_others_are_inserted(
    server: ClickHouse, sink: ClickHouseSink, unique: str
) -> None:
    foreign = [b"", b"hello", b"\xc3\x01", b"\xc3\x01" + b"x" * 30, outcome(unique, 1), b"\x00" * 100]
    batch = messages(change(unique, 1), *foreign, change(unique, 2))
    outputs = await put(sink, batch)
    assert [(o.topic, o.value) for o in outputs] == [(DEAD, m.value()) for m in batch[1:-1]]
    assert {dict(o.headers or [])["leadstream.reason"] for o in outputs} == {b"unknown_schema"}
    assert {dict(o.headers or [])["leadstream.stage"] for o in outputs} == {b"sink-clickhouse"}
    assert await count(server, "lead_events", unique) == 2


async def test_only_the_records_that_clickhouse_rejects_are_dead(
    server: ClickHouse, sink: ClickHouseSink, unique: str
) -> None:
    rng = random.Random(3)
    good = [change(unique, n) for n in range(40)]
    broken = [
        good[5][:-9],
        good[7][:HEADER],
        change(unique, 90, lead_id="no uuid"),
        change(unique, 91, merged=["none"]),
    ]
    values = good + broken
    rng.shuffle(values)
    outputs = await put(sink, messages(*values, start=uuid.uuid4().int % 2**60))
    assert {o.value for o in outputs} == set(broken)
    assert {dict(o.headers or [])["leadstream.reason"] for o in outputs} == {b"rejected"}
    rows = await server.query("SELECT event_id FROM lead_events WHERE tenant = {t:String}", t=unique)
    assert sorted(row["event_id"] for row in rows) == sorted(f"e-{n}" for n in range(40))


async def test_a_server_that_rejects_everything_stops_the_sink(stack: Stack, unique: str) -> None:
    """A database without the tables must stop the sink: its records are not the cause."""
    async with ClickHouse(f"{stack.clickhouse_url.rpartition('/')[0]}/default") as wrong:
        with pytest.raises(ClickHouseError):
            await put(ClickHouseSink(wrong, CODEC), messages(change(unique, 1), change(unique, 2)))


async def test_an_unavailable_server_is_reported_as_a_dependency(unique: str) -> None:
    async with ClickHouse("http://127.0.0.1:1/leadstream") as unavailable:
        sink = ClickHouseSink(unavailable, CODEC)
        with pytest.raises(DependencyUnavailable, match="ClickHouse"):
            await put(sink, messages(change(unique, 1)))
