"""From one record of leads.campaign-signals to message requests and outcomes."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import orjson
import pytest

from infra.kafka.producer import Output
from schemas.codec import Codec
from streams.campaigns.catalog import CampaignSet
from streams.campaigns.evaluate import Evaluator
from streams.campaigns.templates import Templates
from streams.campaigns.triggers import load_campaigns
from streams.faust.ordered import Record

SHIPPED = Path(__file__).parents[3] / "campaigns"
CODEC = Codec()
LEAD = str(uuid.UUID(int=7))
NOW = 1_770_000_000_000_000


def record(
    event_id: str = "e-1", form_id: str = "demo", kind: str = "form_submitted", at: int = NOW, **lead: Any
) -> Record:
    names = {"lead_id": LEAD, "tenant": "acme", "version": 3, "created_at": NOW, "updated_at": NOW}
    signal = {
        "tenant": "acme",
        "event_id": event_id,
        "event_type": kind,
        "occurred_at": at,
        "decided_at": NOW,
        "properties": orjson.dumps({"form_id": form_id, "answers": {}, "identifiers": {}}).decode(),
        "lead": orjson.dumps(names | {"email": "ada@example.com", "first_name": "Ada"} | lead).decode(),
    }
    return raw(CODEC.encoder("campaign_signal")(signal))


def raw(value: bytes | None) -> Record:
    return Record(("leads.campaign-signals", 1), 42, LEAD.encode(), value, [("traceparent", b"00-1-2-01")])


def evaluator(once_per: str = "lead", **consent: Any) -> Evaluator:
    (demo,) = load_campaigns(SHIPPED).values()
    changed = {"once_per": once_per, "consent": demo.consent.model_copy(update=consent)}
    current = CampaignSet((demo.model_copy(update=changed),), Templates(SHIPPED))
    return Evaluator(lambda _: current, CODEC, lambda: NOW)


def decoded(outputs: list[Output]) -> list[tuple[str, dict[str, Any]]]:
    return [(output.topic, CODEC.decode(output.value or b"").record) for output in outputs]


async def run(record: Record, **how: Any) -> list[tuple[str, dict[str, Any]]]:
    return decoded(list(await evaluator(**how)(record)))


async def test_a_demo_request_emits_one_message_request_and_one_outcome() -> None:
    (topic, request), (_, outcome) = await run(record())
    assert topic == "leads.messages-requested"
    assert (request["to"], request["campaign"], request["channel"]) == ("ada@example.com", "demo_request", "email")
    assert (request["lead_id"], request["event_id"], request["purpose"]) == (LEAD, "e-1", "marketing")
    assert request["subject"] == "Ada, your demonstration"
    assert "Hello Ada" in request["body"]
    assert (outcome["what"], outcome["detail"], outcome["event_id"]) == ("triggered", "demo_request", "e-1")
    assert (outcome["topic"], outcome["partition"], outcome["offset"]) == ("leads.campaign-signals", 1, 42)
    assert "ada" not in str(outcome).lower()


async def test_a_redelivered_signal_gives_identical_outputs() -> None:
    assert list(await evaluator()(record())) == list(await evaluator()(record()))


@pytest.mark.parametrize(("once_per", "same"), [("lead", True), ("event", False)])
async def test_a_second_event_of_a_lead_has_the_same_message_id_only_with_once_per_lead(
    once_per: str, same: bool
) -> None:
    first = (await run(record("e-1"), once_per=once_per))[0][1]
    second = (await run(record("e-2"), once_per=once_per))[0][1]
    other = (await run(record("e-1", lead_id=str(uuid.UUID(int=8))), once_per=once_per))[0][1]
    assert (first["message_id"] == second["message_id"]) is same
    assert other["message_id"] not in (first["message_id"], second["message_id"])


async def test_a_signal_that_triggers_no_campaign_has_no_output() -> None:
    assert await run(record(form_id="newsletter")) == []
    assert await run(record(kind="page_viewed")) == []


async def test_without_consent_or_without_address_the_outcome_is_skipped() -> None:
    for made, how, reason in (
        (record(consent={"marketing": "withdrawn"}), {}, "no_consent"),
        (record(), {"required": True}, "no_consent"),
        (record(email=""), {}, "no_address"),
    ):
        ((topic, outcome),) = await run(made, **how)
        assert (topic, outcome["what"], outcome["reason"]) == ("leads.outcomes", "skipped", reason)
    assert len(await run(record(consent={"marketing": "granted"}), required=True)) == 2


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"\xc3\x01garbage",
        b"{}",
        CODEC.encoder("crm_wanted")({"tenant": "a", "lead_id": LEAD, "version": 1, "decided_at": NOW}),
    ],
)
async def test_an_invalid_signal_is_a_dead_letter_with_its_original_value(value: bytes | None) -> None:
    (output,) = await evaluator()(raw(value))
    assert output.topic == "leads.dead"
    assert output.value == value
    assert ("traceparent", b"00-1-2-01") in (output.headers or ())


async def test_a_message_that_is_too_large_for_its_topic_is_skipped_and_not_requested() -> None:
    ((topic, outcome),) = await run(record(first_name="A" * 2_000_000))
    assert (topic, outcome["what"], outcome["reason"]) == ("leads.outcomes", "skipped", "too_large")


HOUR = 3_600_000_000


@pytest.mark.parametrize(("age", "triggered"), [(23 * HOUR, True), (25 * HOUR, False), (5 * 365 * 24 * HOUR, False)])
async def test_an_old_event_triggers_nothing_and_is_reported_as_expired(age: int, triggered: bool) -> None:
    """Such as forms that are imported years later."""
    outputs = await run(record(at=NOW - age))
    outcome = outputs[-1][1]
    assert (outcome["what"], outcome["reason"]) == (("triggered", "") if triggered else ("skipped", "expired"))
    assert len(outputs) == 1 + triggered


@pytest.mark.parametrize(
    "lead",
    [
        {"consent": []},
        {"consent": {"marketing": 1}},
        {"email": None},
        {"email": {"a": 1}},
        {"version": 2**63},
        {"version": "3"},
        {"lead_id": "not a uuid"},
        {"lead_id": 7},
        {"custom": "x"},
        {"employees": "many"},
    ],
)
async def test_a_lead_with_values_of_wrong_types_is_a_dead_letter(lead: dict[str, Any]) -> None:
    (letter,) = await evaluator()(record(**lead))
    assert letter.topic == "leads.dead"
    assert dict(letter.headers or [])["leadstream.reason"] == b"not_json"
