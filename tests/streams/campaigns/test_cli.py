"""``leadstream campaigns`` on a folder of campaigns."""

from __future__ import annotations

import json
import shutil
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


def test_check_includes_the_folders_of_tenants(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copytree(SHIPPED, tmp_path / "acme-campaigns")
    (tmp_path / "acme.yaml").write_text("campaigns: acme-campaigns", "utf-8")
    monkeypatch.setenv("LEADSTREAM_TENANTS_DIR", str(tmp_path))
    found = json.loads(run(monkeypatch, SHIPPED, "check", "--json")[1])
    assert found == {"campaigns": ["demo_request"], "tenants": {"acme": ["demo_request"]}}
    (tmp_path / "acme-campaigns" / "bad.yaml").write_text("name: bad\n", "utf-8")
    code, _, err = run(monkeypatch, SHIPPED, "check")
    assert code == 1
    assert "acme: " in err
    assert "bad.yaml: trigger: Field required" in err


def test_preview_shows_the_message_of_a_campaign(monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = run(monkeypatch, SHIPPED, "preview", "demo_request")
    assert (code, "Subject: Ada, your demonstration" in out, "<p>Hello Ada,</p>" in out) == (0, True, True)
    code, out, _ = run(monkeypatch, SHIPPED, "preview", "demo_request", "--json")
    assert json.loads(out)["to"] == "ada@example.com"
    assert run(monkeypatch, SHIPPED, "preview", "nothing")[0] == 1
