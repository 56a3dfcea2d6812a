"""``leadstream topics``: its output and exit codes."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import pytest
import typer
from confluent_kafka.admin import AdminClient, NewTopic
from typer.testing import CliRunner

from cli import lag, topics

pytestmark = pytest.mark.integration


def command() -> typer.Typer:
    app = typer.Typer()
    topics.register(app)
    lag.register(app)
    return app


@pytest.fixture
def run(stack: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LEADSTREAM_KAFKA_BOOTSTRAP", stack.settings.kafka_bootstrap)
    return lambda *words: CliRunner().invoke(command(), ["topics", *words])


def test_diff_exits_with_1_if_there_is_a_difference(run: Any, stack: Any) -> None:
    assert run("apply").exit_code == 0
    admin = AdminClient({"bootstrap.servers": stack.settings.kafka_bootstrap})
    stray = f"leads.stray-{uuid4().hex[:8]}"
    admin.create_topics([NewTopic(stray, 1, 1)])[stray].result()
    try:
        found = run("diff")
        assert found.exit_code == 1
        assert f"{stray}: is not in the file" in found.stdout
        documents = json.loads(run("diff", "--json").stdout)
        assert {"topic": stray, "what": "unknown", "setting": "", "wanted": "", "actual": ""} in documents
        left = run("apply", "--json")
        assert left.exit_code == 0
        assert [d["corrected"] for d in json.loads(left.stdout) if d["topic"] == stray] == [False]
    finally:
        admin.delete_topics([stray])[stray].result()
