"""``leadstream produce`` and ``leadstream dead`` on a real broker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import typer
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from typer.testing import CliRunner

from cli import dead, produce
from infra.kafka.dead_letters import dead_letter
from infra.outcomes import Dead, Problem, Reason
from operations import broker_topics
from schemas.codec import Codec, DecodeError

pytestmark = pytest.mark.integration


def command() -> typer.Typer:
    app = typer.Typer()
    produce.register(app)
    dead.register(app)
    return app


@pytest.fixture
def bootstrap(stack: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LEADSTREAM_KAFKA_BOOTSTRAP", stack.settings.kafka_bootstrap)
    broker_topics.apply(stack.settings)
    address: str = stack.settings.kafka_bootstrap
    return address


def run(*words: object) -> Any:
    return CliRunner().invoke(command(), [str(word) for word in words])


def line(event_id: str) -> str:
    envelope = {"event_id": event_id, "tenant": "acme"}
    return json.dumps({"type": "form_submitted", "envelope": envelope, "identifiers": {"email": "ada@example.com"}})


def received(bootstrap: str, prefix: str) -> set[str]:
    """Return the event ids in leads.received that start with ``prefix``."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "test-reads-all", "enable.partition.eof": True})
    consumer.assign([TopicPartition("leads.received", p, 0) for p in range(8)])
    found: set[str] = set()
    ended = 0
    while ended < 8:
        for message in consumer.consume(500, 0.2):
            ended += message.error() is not None
            if message.error() is None:
                try:
                    found.add(Codec().decode(message.value() or b"").record["envelope"]["event_id"])
                except DecodeError:
                    continue
    consumer.close()
    return {event_id for event_id in found if event_id.startswith(prefix)}


def test_valid_lines_are_sent_and_invalid_ones_are_reported(bootstrap: str, tmp_path: Path) -> None:
    prefix = uuid4().hex
    file = tmp_path / "events.ndjson"
    wrong = '{"type": "form_submitted", "envelope": {"tenant": "acme"}, "identifiers": {"email": "a@b.c"}, "name": "x"}'
    file.write_text("\n".join([line(f"{prefix}-1"), "{", "", wrong, line(f"{prefix}-2")]))
    sent = run("produce", file)
    assert sent.exit_code == 1
    assert "2 events sent." in sent.stdout
    assert "line 2: /: not JSON" in sent.output
    assert "line 4: /name: no such field" in sent.output
    assert received(bootstrap, prefix) == {f"{prefix}-1", f"{prefix}-2"}


def test_strict_sends_nothing_if_one_line_is_invalid(bootstrap: str, tmp_path: Path) -> None:
    prefix = uuid4().hex
    file = tmp_path / "events.ndjson"
    file.write_text("\n".join([line(f"{prefix}-1"), "{"]))
    refused = run("produce", file, "--strict", "--json")
    assert refused.exit_code == 1
    report = json.loads(refused.stdout)
    assert (report["sent"], [problem["line"] for problem in report["invalid"]]) == (0, [2])
    assert received(bootstrap, prefix) == set()


def test_thousands_of_lines_are_all_sent(bootstrap: str, tmp_path: Path) -> None:
    prefix = uuid4().hex
    file = tmp_path / "events.ndjson"
    file.write_text("\n".join(line(f"{prefix}-{i}") for i in range(3000)))
    sent = run("produce", file, "--json")
    assert sent.exit_code == 0, sent.output
    assert json.loads(sent.stdout) == {"sent": 3000, "unconfirmed": [], "invalid": []}
    assert len(received(bootstrap, prefix)) == 3000


@pytest.mark.usefixtures("bootstrap")
def test_when_the_api_is_unavailable_no_line_is_confirmed(tmp_path: Path) -> None:
    file = tmp_path / "events.ndjson"
    file.write_text("\n".join([line("a"), line("b")]))
    sent = run("produce", file, "--url", "http://127.0.0.1:1", "--json")
    assert sent.exit_code == 1
    assert json.loads(sent.stdout)["unconfirmed"] == [1, 2]


def test_a_missing_file_exits_with_2() -> None:
    assert run("produce", "/no/such/file").exit_code == 2


def test_dead_letters_are_counted_listed_and_shown_without_their_values(bootstrap: str) -> None:
    offset = uuid4().int % 10**12
    original = Message("leads.test", 3, offset, b"key", b"secret bytes", [("traceparent", b"x")], None, (1, 0))
    letter = dead_letter(original, "intake", Dead(Reason.QUOTA, (Problem("/a", "is wrong"),)))
    producer = Producer({"bootstrap.servers": bootstrap})
    producer.produce(letter.topic, letter.value, letter.key, headers=list(letter.headers or []))
    assert producer.flush(20) == 0
    summary = json.loads(run("dead", "list", "--json").stdout)
    assert [s["stage"] for s in summary if s["reason"] == "quota"] == ["intake"]
    listed = json.loads(run("dead", "list", "--reason", "quota", "--json").stdout)
    assert offset in [each["offset"] for each in listed]
    shown = run("dead", "show", "leads.test", 3, offset)
    assert shown.exit_code == 0
    assert "/a: is wrong" in shown.stdout
    assert "secret" not in shown.stdout
    assert run("dead", "show", "leads.test", 3, offset, "--bytes").stdout == "secret bytes"
    assert run("dead", "show", "leads.test", 4, offset).exit_code == 1
