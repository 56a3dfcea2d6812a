"""A UTF-8 byte order mark at the start of a file of events is skipped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cli import produce, schemas

GOOD = json.dumps(
    {
        "type": "lead_created",
        "envelope": {"event_id": "e", "tenant": "acme", "occurred_at": "2026-11-20T09:00:00Z", "source": "web"},
        "identifiers": {"email": "ada@example.com"},
    }
)


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    produce.register(app)
    app.command()(schemas.validate)
    return app


def test_produce_skips_it_and_counts_lines_from_the_first(app: typer.Typer, tmp_path: Path) -> None:
    file = tmp_path / "events.ndjson"
    file.write_text(f"{GOOD}\n{GOOD}\n{{", "utf-8-sig")
    refused = CliRunner().invoke(app, ["produce", str(file), "--strict", "--json"])
    assert [problem["line"] for problem in json.loads(refused.stdout)["invalid"]] == [3]


@pytest.mark.parametrize("content", [GOOD, f"{GOOD}\n{GOOD}\n", json.dumps(json.loads(GOOD), indent=1)])
def test_validate_skips_it(app: typer.Typer, tmp_path: Path, content: str) -> None:
    file = tmp_path / "events.ndjson"
    file.write_text(content, "utf-8-sig")
    assert CliRunner().invoke(app, ["validate", str(file)]).exit_code == 0
