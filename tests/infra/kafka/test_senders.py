"""The sender of a dead record, and the alarm when one sender sends many."""

from __future__ import annotations

import logging
import uuid

import pytest
from confluent_kafka import Message
from prometheus_client import REGISTRY

from infra.kafka.senders import DeadBySender, sender_name, sender_of


def message(key: bytes | None, headers: list[tuple[str, bytes | None]] | None = None) -> Message:
    return Message("leads.received", 0, 0, key, b"\xff", headers, None, None)


@pytest.mark.parametrize(
    ("key", "headers", "sender"),
    [
        (b"acme:ada", None, "acme"),
        (b"acme:ada", [("source", b"web")], "web"),
        (None, [("ce_source", b"/shop")], "/shop"),
        (b"no tenant", None, "unknown"),
        (None, [("source", None), ("source", b"")], "unknown"),
        (b"\xff:x", [("source", b"\xff\x00\n")], "\ufffd"),
        (None, [("source", b"x" * 4_000_000)], "x" * 100),
        (None, [(f"h{n}", b"") for n in range(10_000)], "unknown"),
    ],
)
def test_who_sent_a_record_that_cannot_be_decoded(
    key: bytes | None, headers: list[tuple[str, bytes | None]] | None, sender: str
) -> None:
    assert sender_of(message(key, headers)) == sender


@pytest.mark.parametrize("text", ["", " ", "\0", "\u200b", "\ud800"])
def test_a_name_that_shows_nothing_is_unknown(text: str) -> None:
    assert sender_name(text) == "unknown"


def test_a_flood_is_logged_once_a_minute_by_sender_and_other_senders_are_not_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now, stage = 0.0, uuid.uuid4().hex
    counting = DeadBySender(stage, lambda: now)
    with caplog.at_level(logging.ERROR):
        for _ in range(500):
            counting.count("broken")
        counting.count("fine")
        assert len(caplog.records) == 1
        now = 61.0
        for _ in range(500):
            counting.count("broken")
    assert [record.__dict__["fields"]["sender"] for record in caplog.records] == ["broken", "broken"]
    assert REGISTRY.get_sample_value("leadstream_dead_letters_total", {"stage": stage, "sender": "broken"}) == 1000


def test_the_number_of_senders_in_the_metric_is_bounded() -> None:
    stage = uuid.uuid4().hex
    counting = DeadBySender(stage)
    for number in range(1000):
        counting.count(f"sender-{number}")
    samples = [
        sample
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name == "leadstream_dead_letters_total" and sample.labels["stage"] == stage
    ]
    assert len(samples) == 51
    assert sum(sample.value for sample in samples) == 1000
