"""One enrichment request gives one outcome, and for a found lead one event with a stable event_id."""

from __future__ import annotations

import time
from typing import Any

import pytest

from infra.outcomes import Reason
from schemas.codec import Codec
from streams.enrichment.enrich import TOPIC, EnrichmentHandler
from streams.enrichment.providers import Found, LookupFailed, LookupResult, NotFound
from streams.faust.ordered import Record
from tests.streams.enrichment.requests import request
from tests.streams.enrichment.test_waterfall import Memory, Scripted, waterfall

CODEC = Codec()


async def outputs(result: LookupResult, value: bytes | None = None, **lead: Any) -> list[tuple[str, bytes | None, Any]]:
    enrich = EnrichmentHandler(waterfall(Scripted("test", result), results=Memory()), CODEC, clock=time.time_ns)
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
    assert record["request_event_id"] == "request-1"
    assert (outcome[0], outcome[2].record["what"], outcome[2].record["reason"]) == ("leads.outcomes", "enriched", "")
    assert (outcome[2].record["partition"], outcome[2].record["offset"]) == (2, 7)
    repeated = (await outputs(found, external_id="u-1"))[0]
    assert repeated == event, "the same request gives the same event"


@pytest.mark.parametrize(
    ("result", "lead", "what", "reason"),
    [
        (NotFound(), {}, "skipped", Reason.NOT_FOUND),
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
