"""Whatever a record of ``leads.crm-*`` holds: a dead letter with its reason, and the next good record is processed."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from confluent_kafka import Message

from schemas.codec import Codec
from sinks.crm.sync_requests import SyncRequests
from tests.conftest import outputs_of

pytestmark = pytest.mark.integration

CODEC = Codec()
LEAD = "0198c1f2-7b1e-7c9a-8d7e-00000000000a"
GOOD = {"tenant": "acme", "lead_id": LEAD, "version": 1, "decided_at": 1_770_000_000_000_000}


def wanted(**changes: Any) -> bytes:
    return CODEC.encoder("crm_wanted")(GOOD | changes)


HOSTILE: dict[str, tuple[bytes | None, str]] = {
    "no value": (None, "empty"),
    "an empty value": (b"", "empty"),
    "garbage": (b"\xff" * 100, "not_avro"),
    "a truncated record": (wanted()[:-3], "not_avro"),
    "another type": (CODEC.encoder("outcome")({"at": 1, "stage": "x", "what": "y"}), "unknown_event_type"),
    "braces": (wanted(lead_id=f"{{{LEAD}}}"), "invalid_field"),
    "urn": (wanted(lead_id=f"urn:uuid:{LEAD}"), "invalid_field"),
    "32 digits": (wanted(lead_id=LEAD.replace("-", "")), "invalid_field"),
    "dashes elsewhere": (wanted(lead_id="0198-c1f27b1e-7c9a-8d7e-00000000000a"), "invalid_field"),
    "digits of another script": (wanted(lead_id=LEAD.replace("0", "\N{ARABIC-INDIC DIGIT ZERO}")), "invalid_field"),
    "a line break after it": (wanted(lead_id=LEAD + "\n"), "invalid_field"),
    "no lead": (wanted(lead_id=""), "invalid_field"),
    "a NUL in the lead": (wanted(lead_id="\0" * 36), "invalid_field"),
    "a NUL in the tenant": (wanted(tenant="ac\0me"), "invalid_field"),
    "a tenant of 1 MB": (wanted(tenant="a" * 1_000_000), "invalid_field"),
    "version 0": (wanted(version=0), "invalid_field"),
    "a negative version": (wanted(version=-(2**63)), "invalid_field"),
    "a version that no lead reaches": (wanted(version=2**63 - 1), "invalid_field"),
    "the first microsecond": (wanted(decided_at=-(2**63)), "invalid_field"),
    "the last microsecond": (wanted(decided_at=2**63 - 1), "invalid_field"),
    "before 1970": (wanted(decided_at=-1), "invalid_field"),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_it_is_dead_and_the_next_record_is_stored(world: Any, name: str) -> None:
    value, reason = HOSTILE[name]
    processor = SyncRequests(world.table(), CODEC, "crm-hubspot", world.wake)
    good = str(uuid.uuid4())
    batch = [
        Message("leads.crm-hubspot", 0, offset, None, each, None, None, (1, 0))
        for offset, each in enumerate([value, wanted(lead_id=good.upper())])
    ]
    (output,) = await outputs_of(processor.apply(processor.prepare(batch)))
    headers = dict(output.headers or ())
    assert (output.topic, headers["leadstream.reason"].decode(), output.value) == ("leads.dead", reason, value)
    assert await world.rows() == 1
    assert (await world.row(good))["wanted_version"] == 1


async def test_the_same_lead_in_two_spellings_is_one_row(world: Any) -> None:
    processor = SyncRequests(world.table(), CODEC, "crm-hubspot", world.wake)
    values = [wanted(lead_id=LEAD.upper(), version=1), wanted(version=2)]
    batch = [Message("leads.crm-hubspot", 0, 0, None, value, None, None, (1, 0)) for value in values]
    assert await outputs_of(processor.apply(processor.prepare(batch))) == []
    assert (await world.row(LEAD))["wanted_version"] == 2


async def test_times_at_the_edges_are_stored(world: Any) -> None:
    processor = SyncRequests(world.table(), CODEC, "crm-hubspot", world.wake)
    message = Message("leads.crm-hubspot", 0, 0, None, wanted(decided_at=0, version=2**53), None, None, (1, 0))
    assert await outputs_of(processor.apply(processor.prepare([message]))) == []
    await world.sync().once()
    assert await world.row(LEAD) is None, "the lead does not exist: its row is retired"


HOSTILE_LEADS: dict[str, dict[str, Any]] = {
    "a lead of 1 MiB": {"custom": {f"k{i}": "v" * 8192 for i in range(128)}},
    "a text of 1 MiB": {"title": "t" * 1_048_576},
    "objects and arrays": {"title": {"a": [1]}, "email": [], "score": {}},
    "large numbers": {"score": 1.7e308, "employees": 2**63 - 1},
    "texts for numbers": {"score": "high", "employees": ""},
    "nulls": dict.fromkeys(("title", "email", "score")),
    "truth values": {"title": True, "score": False},
    "control characters": {"title": "a\r\nb\x01\u2028", "phone": "\x7f"},
    "emoji and astral": {"first_name": "\U0001f600" * 100, "last_name": "\uffff"},
    "unknown fields": {"no_such_field": "x", "": "y", "a.b": "z"},
}


@pytest.mark.parametrize("name", HOSTILE_LEADS)
async def test_whatever_a_lead_holds_it_has_a_result_and_the_next_lead_is_synced(world: Any, name: str) -> None:
    bad = await world.lead(**HOSTILE_LEADS[name])
    good = await world.lead(email=f"{uuid.uuid4()}@example.com")
    await world.sync().once()
    assert (await world.row(good))["synced_version"] == 1
    assert {o["what"] for o in world.outcomes if o["lead_id"] == bad} <= {"synced", "parked"}
    assert len([o for o in world.outcomes if o["lead_id"] == bad]) == 1
