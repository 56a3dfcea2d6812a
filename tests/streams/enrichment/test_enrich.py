"""One enrichment request gives one outcome, and for a found lead one event with a stable event_id."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from infra.outcomes import Reason
from infra.postgres.leased_rows import Subject
from infra.retry import Backoff
from schemas.codec import Codec
from streams.enrichment.enrich import TOPIC, EnrichmentHandler
from streams.enrichment.parking import Parking
from streams.enrichment.providers import Found, LookupFailed, LookupResult, NotFound
from streams.enrichment.work_table import OpenRequest
from streams.faust.ordered import Record
from tests.streams.enrichment.requests import lead_id, request
from tests.streams.enrichment.test_waterfall import Memory, Scripted, waterfall

CODEC = Codec()
NOW = 1_770_000_000_000_000


class Rows:
    """The table of open requests in memory; the one in Postgres is tested in test_work.py."""

    def __init__(self, earlier: dict[str, Subject] | None = None) -> None:
        self.earlier = earlier or {}
        self.added: list[OpenRequest] = []
        self.statements = 0

    async def add(self, requests: Sequence[OpenRequest]) -> dict[str, Subject]:
        self.statements += 1
        await asyncio.sleep(0)
        assert len({each.about.lead_id for each in requests}) == len(requests)
        self.added += requests
        return self.earlier


class Erased:
    """An erasure that is decided before the nth question about it."""

    def __init__(self, from_call: int = 10**9) -> None:
        self.from_call = from_call
        self.asked: list[tuple[str, int]] = []

    async def erased(self, lead_id: str, asked_at: int) -> bool:
        self.asked.append((lead_id, asked_at))
        return len(self.asked) >= self.from_call


def handler(
    *results: LookupResult, rows: Rows | None = None, provider: Scripted | None = None, erased: Erased | None = None
) -> EnrichmentHandler:
    table: Any = rows or Rows()
    lookups = waterfall(provider or Scripted("test", *results), results=Memory())
    parking, erasures = Parking(table, asyncio.Event()), erased or Erased()
    return EnrichmentHandler(lookups, CODEC, parking, Backoff(5, 5), erasures=erasures, clock=lambda: NOW)


@pytest.mark.parametrize(("from_call", "calls"), [(1, 0), (2, 1)], ids=["before the lookup", "during the lookup"])
async def test_an_answer_about_an_erased_lead_is_not_published(from_call: int, calls: int) -> None:
    provider, erased = Scripted("test", Found({"title": "CTO"})), Erased(from_call)
    record = Record((TOPIC, 2), 7, b"key", request(1), [])
    [outcome] = await handler(provider=provider, erased=erased)(record)
    told = CODEC.decode(outcome.value or b"").record
    assert (told["what"], told["reason"], provider.calls) == ("skipped", "erased", calls)
    assert {at for _, at in erased.asked} == {NOW}


@pytest.mark.parametrize(
    ("consent", "calls", "reason"),
    [({"enrichment": "withdrawn"}, 0, "no_consent"), ({"enrichment": "granted"}, 1, ""), ({"crm": "withdrawn"}, 1, "")],
)
async def test_a_lead_is_not_looked_up_against_the_persons_will(consent: Any, calls: int, reason: str) -> None:
    provider = Scripted("test", Found({"title": "CTO"}))
    made = await handler(provider=provider)(Record((TOPIC, 2), 7, b"key", request(1, consent=consent), []))
    assert (provider.calls, CODEC.decode(made[-1].value or b"").record["reason"]) == (calls, reason)


async def outputs(
    result: LookupResult, value: bytes | None = None, rows: Rows | None = None, **lead: Any
) -> list[tuple[str, bytes | None, Any]]:
    enrich = handler(result, rows=rows)
    record = Record((TOPIC, 2), 7, b"key", request(1, **lead) if value is None else value, [("traceparent", b"00-1")])
    return [
        (output.topic, output.key, output.value if output.topic == "leads.dead" else CODEC.decode(output.value or b""))
        for output in await enrich(record)
    ]


async def test_a_found_lead_gives_an_event_and_an_outcome() -> None:
    found = Found({"title": "CTO", "employees": 12, "custom": {"linkedin": "x"}, "surprise": 1}, 0.8, 1)
    event, outcome = await outputs(found, external_id="u-1")
    assert (event[0], event[1]) == ("leads.received", b"acme:lead1@example.com")
    record = event[2].record
    assert event[2].type == "enrichment_completed"
    assert record["envelope"]["source"] == "leadstream:enrichment:test"
    assert (record["title"], record["employees"], record["custom"], record["likelihood"]) == (
        "CTO",
        12,
        {"linkedin": "x"},
        0.8,
    )
    assert record["identifiers"]["email"] == "lead1@example.com"
    assert record["identifiers"]["external_id"] == "u-1"
    assert (record["request_event_id"], record["asked_at"]) == ("request-1", NOW)
    assert (outcome[0], outcome[2].record["what"], outcome[2].record["reason"]) == ("leads.outcomes", "enriched", "")
    assert (outcome[2].record["partition"], outcome[2].record["offset"]) == (2, 7)
    repeated = (await outputs(found, external_id="u-1"))[0]
    assert repeated == event, "the same request gives the same event"


@pytest.mark.parametrize(
    ("result", "lead", "what", "reason"),
    [
        (NotFound(), {}, "skipped", Reason.NOT_FOUND),
        (LookupFailed(Reason.REJECTED, detail="status 422"), {}, "skipped", Reason.REJECTED),
        (LookupFailed(Reason.QUOTA, detail="status 402"), {}, "parked", Reason.QUOTA),
        (LookupFailed(Reason.RATE_LIMITED, retryable=True), {}, "parked", Reason.RATE_LIMITED),
        (Found({}), {"email": ""}, "skipped", Reason.NO_IDENTIFIER),
        (Found({"title": "x" * 5_000_000}), {}, "skipped", Reason.TOO_LARGE),
    ],
)
async def test_every_other_result_gives_only_an_outcome(
    result: LookupResult, lead: Any, what: str, reason: Reason
) -> None:
    [outcome] = await outputs(result, **lead)
    assert outcome[0] == "leads.outcomes"
    assert (outcome[2].record["what"], outcome[2].record["reason"]) == (what, reason.value)
    assert "example.com" not in outcome[2].record["detail"]


@pytest.mark.parametrize("value", [b"", b"junk", b"\xc3\x01cut", b'{"type": "form_submitted"}'])
async def test_an_invalid_request_is_a_dead_letter(value: bytes) -> None:
    [dead] = await outputs(NotFound(), value)
    assert dead == ("leads.dead", b"key", value)


@pytest.mark.parametrize(
    "lead",
    [
        {"lead_id": "no uuid"},
        {"lead_id": 7},
        {"lead_id": "{0f5c1a52-9a0e-5b63-9f0a-6f1f6c1f3c77}"},
        {"version": 10**25},
        {"version": "1"},
        {"email": 5},
        {"email": None},
        {"first_name": {}},
        {"crm_ids": {"hubspot": 5}},
        {"crm_ids": []},
    ],
)
async def test_a_lead_with_an_invalid_value_is_a_dead_letter(lead: dict[str, Any]) -> None:
    [dead] = await outputs(NotFound(), **lead)
    assert dead[0] == "leads.dead"


@pytest.mark.parametrize("field", ["tenant", "event_id"])
async def test_a_request_with_a_nul_character_is_a_dead_letter(field: str) -> None:
    record = CODEC.decode(request(1)).record | {field: "a\0b"}
    [dead] = await outputs(NotFound(), CODEC.encoder("enrichment_request")(record))
    assert dead[0] == "leads.dead"


async def test_an_invalid_traceparent_is_not_forwarded() -> None:
    for header, forwarded in ((b"x" * 1_000_000, None), (b"", None), (b"00-1", [("traceparent", b"00-1")])):
        record = Record((TOPIC, 2), 7, b"key", request(1), [("traceparent", header)])
        event, _ = await handler(Found({"title": "CTO"}))(record)
        assert event.headers == forwarded


async def test_a_request_that_fails_is_stored_before_its_outcome_is_emitted() -> None:
    rows = Rows()
    [outcome] = await outputs(LookupFailed(Reason.UNAVAILABLE, detail="status 503"), rows=rows)
    [stored] = rows.added
    assert (stored.about.lead_id, stored.about.event_id) == (lead_id("acme", 1), "request-1")
    assert stored.about.source == (TOPIC, 2, 7)
    assert stored.reason is Reason.UNAVAILABLE
    assert NOW <= stored.due_at <= NOW + 10_000_000
    assert outcome[2].record["what"] == "parked"


async def test_a_newer_request_replaces_the_older_one_and_each_has_its_outcome() -> None:
    lead = lead_id("acme", 1)
    for version, expected in (
        (0, [("request-0", "superseded"), ("request-1", "unavailable")]),
        (9, [("request-1", "superseded")]),
    ):
        rows = Rows({lead: Subject("acme", "request-0", lead, version, (TOPIC, 2, 3))})
        found = await outputs(LookupFailed(Reason.UNAVAILABLE), rows=rows)
        assert [(output[2].record["event_id"], output[2].record["reason"]) for output in found] == expected


async def test_concurrent_failures_are_stored_together() -> None:
    rows = Rows()
    enrich = handler(LookupFailed(Reason.QUOTA), rows=rows)
    records = [Record((TOPIC, 0), n, b"%d" % n, request(n)) for n in range(100)]
    records.append(Record((TOPIC, 0), 100, b"0", request(0)))  # the same lead again
    found = await asyncio.gather(*(enrich(record) for record in records))
    assert len(found) == len(rows.added) == 101
    assert rows.statements < 10
