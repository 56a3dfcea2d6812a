"""The traceparent header of a record, its time, and what the topic of a tenant may contain."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import Message
from hypothesis import given
from hypothesis import strategies as st

from infra.outcomes import Dead, Reason
from schemas.registry import registry
from streams.intake.event import Event
from streams.intake.validate import validate
from tests.events import CODEC, HOUR, NOW, message, payload

TRACE, PARENT = b"4bf92f3577b34da6a3ce929d0e0e4736", b"00f067aa0ba902b7"
VALID = b"00-%s-%s-01" % (TRACE, PARENT)


def carried(*headers: tuple[str, bytes | None]) -> bytes | None:
    value = payload("page_viewed", email="a@example.com")
    made = Message("leads.received", 0, 0, None, value, list(headers), None, (2, NOW // 1000))
    found = validate(CODEC.decode(value), made, NOW, HOUR)
    assert isinstance(found, Event)
    return found.traceparent


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"garbage",
        VALID[:-1],
        VALID + b"-",
        VALID + b"\n",
        VALID * 100_000,
        b"ff" + VALID[2:],
        VALID.upper(),
        b"00-%s-%s-01" % (b"0" * 32, PARENT),
        b"00-%s-%s-01" % (TRACE, b"0" * 16),
    ],
)
def test_a_traceparent_that_is_not_valid_is_dropped(value: bytes | None) -> None:
    assert carried(("traceparent", value)) is None


def test_only_a_valid_traceparent_is_kept() -> None:
    assert carried(("x", b"1"), ("traceparent", VALID), ("y", None)) == VALID
    assert carried(("x", VALID)) is None


@given(st.binary(max_size=80) | st.from_regex(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", fullmatch=True))
def test_a_kept_traceparent_has_at_most_55_bytes(value: bytes) -> None:
    assert carried(("traceparent", value)) in (None, value)
    assert len(carried(("traceparent", value)) or b"") <= 55


def found_in(topic: str, kind: str = "page_viewed", **envelope: Any) -> Event | Dead:
    example = registry().events[kind].example
    value = CODEC.encoder(kind)(example | {"envelope": example["envelope"] | envelope})
    return validate(CODEC.decode(value), Message(topic, 0, 0, None, value, [], None, (2, NOW // 1000)), NOW, HOUR)


def test_a_record_of_another_tenant_in_a_tenants_topic_is_forbidden() -> None:
    assert isinstance(found_in("leads.received.acme", tenant="acme"), Event)
    assert isinstance(found_in("leads.received", tenant="other"), Event)
    for topic in ("leads.received.acme", "leads.received.other2", "leads.received.othe"):
        dead = found_in(topic, tenant="other")
        assert isinstance(dead, Dead)
        assert (dead.reason, dead.problems[0].path) == (Reason.FORBIDDEN, "/envelope/tenant")


@pytest.mark.parametrize("kind", [name for name, kind in registry().events.items() if kind.scope])
def test_what_only_the_pipeline_may_send_is_forbidden_in_a_tenants_topic(kind: str) -> None:
    assert isinstance(found_in("leads.received", kind, tenant="acme"), Event)
    dead = found_in("leads.received.acme", kind, tenant="acme")
    assert isinstance(dead, Dead)
    assert (dead.reason, dead.problems[0].path) == (Reason.FORBIDDEN, "/type")


def test_the_pipelines_sources_are_forbidden_in_a_tenants_topic() -> None:
    dead = found_in("leads.received.acme", tenant="acme", source="leadstream:pdl")
    assert isinstance(dead, Dead)
    assert (dead.reason, dead.problems[0].path) == (Reason.FORBIDDEN, "/envelope/source")


@given(st.integers(-48 * HOUR, 48 * HOUR), st.integers(-48 * HOUR, 48 * HOUR), st.sampled_from([0, HOUR]))
def test_whether_a_time_is_absurd_depends_on_the_broker_and_not_on_the_worker(
    ahead: int, worker: int, max_ahead: int
) -> None:
    value = payload("page_viewed", at=NOW + ahead, email="a@example.com")
    found = validate(CODEC.decode(value), message(value), NOW + worker, max_ahead)

    if ahead <= max_ahead:
        assert isinstance(found, Event)
        assert found.received_at == NOW
    elif ahead >= max_ahead + 1000:  # the broker's time is in milliseconds
        assert isinstance(found, Dead)
        assert found.reason is Reason.ABSURD_TIME


def test_without_a_time_of_the_broker_the_worker_s_clock_decides() -> None:
    value = payload("page_viewed", at=NOW, email="a@example.com")
    made = Message("leads.received", 0, 0, None, value, None, None, (0, 0))

    assert isinstance(validate(CODEC.decode(value), made, NOW, 0), Event)
    assert isinstance(validate(CODEC.decode(value), made, NOW - HOUR, 0), Dead)
