"""Each alert has its runbook and each runbook its alert; a runbook has the four parts in their order."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "runbooks"
PARTS = ["Meaning", "Diagnosis", "Fix", "Check"]


def alerts() -> list[dict[str, Any]]:
    files = sorted((ROOT / "infra" / "prometheus" / "rules").glob("*.yaml"))
    return [
        rule for file in files for group in yaml.safe_load(file.read_text("utf-8"))["groups"] for rule in group["rules"]
    ]


def runbooks() -> list[Path]:
    return sorted(file for file in FOLDER.glob("*.md") if file.name != "README.md")


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: str(alert["alert"]))
def test_an_alert_names_its_runbook(alert: dict[str, Any]) -> None:
    runbook = ROOT / alert["annotations"]["runbook"]
    text = runbook.read_text("utf-8")
    assert text.startswith(f"# {alert['alert']}\n") or f"the alert {alert['alert']}" in text


@pytest.mark.parametrize("file", runbooks(), ids=lambda file: file.name)
def test_a_runbook_has_an_alert_and_the_four_parts(file: Path) -> None:
    text = file.read_text("utf-8")
    assert text.partition("\n")[0].removeprefix("# ") in {alert["alert"] for alert in alerts()}
    assert re.findall(r"^\*\*(\w+)\.\*\*", text, re.MULTILINE) == PARTS
    assert len(text.splitlines()) <= 40


@pytest.mark.parametrize("file", runbooks(), ids=lambda file: file.name)
def test_a_runbook_names_commands_that_exist(file: Path) -> None:
    from cli.main import build  # noqa: PLC0415 - the command line is large

    commands = {
        command.name or command.callback.__name__ for command in build().registered_commands if command.callback
    }
    groups = {group.name for group in build().registered_groups}
    assert not set(re.findall(r"`leadstream (\w+)", file.read_text("utf-8"))) - commands - groups
