"""An invalid event, or one that Postgres could reject, does not affect other events."""

from __future__ import annotations

import math
import random
import struct
from typing import Any

import asyncpg
import orjson
import pytest
from confluent_kafka import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.outcomes import Reason
from streams.intake.pipeline import Intake
from streams.intake.route import Router
from streams.intake.store import Store
from tests.conftest import outputs_of
from tests.events import CODEC, NOW, message, payload, record
from tests.streams.intake.conftest import intake, leads, open_pool

pytestmark = pytest.mark.integration


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


async def test_an_invalid_event_is_a_dead_letter_with_unchanged_bytes(pool: asyncpg.Pool, unique: str) -> None:
    good = [payload("lead_updated", f"g-{n}", tenant=unique, email="a@example.com") for n in range(2)]
    values: list[bytes | None] = [good[0], *(value for _, value in BROKEN), good[1]]
    headers = [("traceparent", b"00-1"), ("x", None), ("x", b"\xff")]
    found = [
        Message("leads.received", 5, n, b"key\xff", v, headers, None, (2, NOW // 1000)) for n, v in enumerate(values)
    ]
    stage = intake(pool)
    letters = [output for output in await outputs_of(stage.apply(stage.prepare(found))) if output.topic == "leads.dead"]
    assert len(letters) == len(BROKEN)
    added = [{k: v for k, v in letter.headers or [] if k.startswith("leadstream.")} for letter in letters]
    assert [
        (each["leadstream.reason"].decode(), letter.value) for each, letter in zip(added, letters, strict=True)
    ] == [(reason.value, value) for reason, value in BROKEN]
    for number, (each, letter) in enumerate(zip(added, letters, strict=True), 1):
        assert letter.key == b"key\xff"
        assert (letter.headers or [])[:3] == headers
        assert (each["leadstream.topic"], each["leadstream.partition"]) == (b"leads.received", b"5")
        assert (each["leadstream.offset"], each["leadstream.stage"]) == (str(number).encode(), b"intake")
        assert each["leadstream.detail"]
        assert b"example.com" not in each["leadstream.detail"]
    assert (await leads(pool, unique))[0]["version"] == 2


async def test_a_dead_letter_of_a_tenants_topic_is_that_tenants_whatever_the_record_claims() -> None:
    forged = payload("lead_updated", "e-1", tenant="victim", email="a@example.com", source="crm")
    headers = [("source", b"victim/crm"), ("leadstream.tenant", b"victim")]
    found = [
        Message("leads.received.acme", 0, n, b"victim:a", v, headers, None, (2, 1))
        for n, v in enumerate((forged, b"\x07"))
    ]
    async with open_pool("postgresql://leadstream@127.0.0.1:1/leadstream") as away:
        stage = intake(away)
        outputs = await outputs_of(stage.apply(stage.prepare(found)))
    assert len(outputs) == len(found)
    for output in outputs:
        last = dict(output.headers or [])
        assert (last["leadstream.tenant"], last["leadstream.sender"]) == (b"acme", b"acme/crm")


async def test_a_batch_of_dead_letters_only_needs_no_database() -> None:
    async with open_pool("postgresql://leadstream@127.0.0.1:1/leadstream") as away:
        stage = intake(away)
        assert len(await outputs_of(stage.apply(stage.prepare([message(b"hello")])))) == 1


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_prepare_accepts_any_bytes(data: st.DataObject) -> None:
    value = bytearray(GOOD)
    for place, byte in data.draw(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=4)):
        value[place] = byte
    stage = Intake(Store(None), CODEC, Router(CODEC, []), max_event_bytes=65_536, max_ahead_s=0)
    prepared = stage.prepare([message(bytes(value)), message(data.draw(st.binary(max_size=64)))])
    assert len(prepared.dead) + len(prepared.events) == 2


async def test_postgres_rejects_no_event_that_passed_validation(pool: asyncpg.Pool, unique: str) -> None:
    """Otherwise one event could stop the events of all senders."""
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
        await outputs_of(stage.apply(prepared))
    assert taken > 100
