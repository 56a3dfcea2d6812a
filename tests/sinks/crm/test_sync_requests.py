"""The consumer of sync requests: one request per lead and batch; invalid records are dead with a reason."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest
from confluent_kafka import Message

from schemas.codec import Codec
from sinks.crm.sync_requests import SyncRequests
from tests.conftest import outputs_of

pytestmark = pytest.mark.integration

CODEC = Codec()
ENCODE = CODEC.encoder("crm_wanted")


def message(value: bytes | None, offset: int = 0) -> Message:
    return Message("leads.crm-hubspot", 0, offset, b"key", value, None, None, (1, 0))


def wanted(lead_id: str, version: int) -> Message:
    return message(ENCODE({"tenant": "acme", "lead_id": lead_id, "version": version, "decided_at": version}))


async def test_a_batch_keeps_the_highest_version_of_each_lead_and_wakes_the_engine(world: Any) -> None:
    processor = SyncRequests(world.table(), CODEC, "crm-hubspot", world.wake)
    one, two = str(uuid.uuid4()), str(uuid.uuid4())
    batch = [wanted(one, 1), wanted(one, 3), wanted(two, 1), wanted(one, 2)]
    for _ in range(2):
        assert await outputs_of(processor.apply(processor.prepare(batch))) == []
    assert world.wake.is_set()
    assert await world.rows() == 2
    row = await world.row(one)
    assert (row["wanted_version"], row["synced_version"], row["tenant"]) == (3, 0, "acme")
    assert row["last_wanted_at"] == 3


async def test_only_invalid_records_are_dead(world: Any) -> None:
    processor = SyncRequests(world.table(), CODEC, "crm-hubspot", asyncio.Event())
    outcome = CODEC.encoder("outcome")({"at": 1, "stage": "x", "what": "y"})
    good = str(uuid.uuid4())
    batch = [message(None), message(b"nonsense"), message(outcome), wanted("no uuid", 1), wanted(good, 1)]
    outputs = await outputs_of(processor.apply(processor.prepare(batch)))
    reasons = [dict(output.headers or ())["leadstream.reason"].decode() for output in outputs]
    assert reasons == ["empty", "not_avro", "unknown_event_type", "invalid_field"]
    assert [output.value for output in outputs] == [m.value() for m in batch[:4]]
    assert await world.rows() == 1
