"""``leadstream campaigns`` on a folder of campaigns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cli.campaigns import register

SHIPPED = Path(__file__).parents[3] / "campaigns"


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> tuple[int, str, str]:
    monkeypatch.setenv("LEADSTREAM_CAMPAIGNS_DIR", str(folder))
    app = typer.Typer()
    register(app)
    done = CliRunner().invoke(app, ["campaigns", *words], env={"COLUMNS": "200"})
    return done.exit_code, done.stdout, done.stderr


def test_list_shows_the_campaigns(monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = run(monkeypatch, SHIPPED, "list")
    assert (code, "demo_request" in out, "event.form_id = demo" in out) == (0, True, True)
    code, out, _ = run(monkeypatch, SHIPPED, "list", "--json")
    assert [each["name"] for each in json.loads(out)] == ["demo_request"]


def test_check_reports_problems_and_exits_with_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert run(monkeypatch, SHIPPED, "check")[:2] == (0, "1 campaigns, no problems\n")
    assert json.loads(run(monkeypatch, SHIPPED, "check", "--json")[1]) == {"campaigns": ["demo_request"]}
    (tmp_path / "bad.yaml").write_text("name: bad\n", "utf-8")
    code, _, err = run(monkeypatch, tmp_path, "check")
    assert code == 1
    assert "bad.yaml: trigger: Field required" in err


def test_preview_shows_the_message_of_a_campaign(monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = run(monkeypatch, SHIPPED, "preview", "demo_request")
    assert (code, "Subject: Ada, your demonstration" in out, "<p>Hello Ada,</p>" in out) == (0, True, True)
    code, out, _ = run(monkeypatch, SHIPPED, "preview", "demo_request", "--json")
    assert json.loads(out)["to"] == "ada@example.com"
    assert run(monkeypatch, SHIPPED, "preview", "nothing")[0] == 1
