"""``leadstream lag``: its table, JSON and totals."""

from __future__ import annotations

import json
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cli import lag
from cli import topics as topics_commands
from infra.kafka import topics
from operations import broker_topics

pytestmark = pytest.mark.integration


def command() -> typer.Typer:
    app = typer.Typer()
    lag.register(app)
    topics_commands.register(app)
    return app


@pytest.fixture
def run(stack: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LEADSTREAM_KAFKA_BOOTSTRAP", stack.settings.kafka_bootstrap)
    broker_topics.apply(stack.settings)
    return lambda *words: CliRunner().invoke(command(), ["lag", *words])


def test_json_lists_partitions_and_totals_are_by_group(run: Any) -> None:
    rows = json.loads(run("--json", "--group", "intake").stdout)
    assert [(row["group"], row["topic"], row["partition"]) for row in rows] == [
        ("intake", "leads.received", p) for p in range(8)
    ]
    assert {"committed", "end", "lag", "seconds", "state"} <= rows[0].keys()
    every = json.loads(run("--json", "--totals").stdout)
    assert set(every) == set(topics.installed_groups())
    assert set(every["intake"]) == {"messages", "seconds", "state"}


def test_the_table_has_a_line_for_every_group(run: Any) -> None:
    shown = run()
    assert shown.exit_code == 0
    for group in topics.installed_groups():
        assert group in shown.stdout


def test_an_unknown_group_exits_with_2_and_lists_the_groups(run: Any) -> None:
    wrong = run("--group", "nobody")
    assert wrong.exit_code == 2
    assert "intake" in wrong.output
