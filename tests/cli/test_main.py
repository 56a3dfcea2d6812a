"""The command line as a whole: help, JSON options, and an installation without the embedded stack."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from cli.main import build

NO_JSON = {"down", "start", "stop", "restart", "tenants schema"}  # these print no result, or always JSON

WITHOUT_LOCAL = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("local", "simulators"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])

sys.meta_path.insert(0, Missing())
from cli.main import main
main()
"""


def commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


COMMANDS = dict(commands(typer.main.get_command(build())))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_and_each_of_its_arguments_and_options_has_a_help_text(name: str) -> None:
    assert COMMANDS[name].help
    assert [parameter.name for parameter in COMMANDS[name].params if not parameter.help] == []


def test_every_command_that_prints_a_result_takes_json() -> None:
    options = {name: {text for each in command.params for text in each.opts} for name, command in COMMANDS.items()}
    assert {name for name, texts in options.items() if "--json" not in texts} == NO_JSON


@pytest.mark.parametrize("command", ["up", "down", "status", "restart intake", "demo"])
def test_a_command_for_the_embedded_stack_fails_with_one_clear_line_when_it_is_not_installed(
    command: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_LOCAL, *command.split()],
        env={"LEADSTREAM_HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("This command needs the embedded stack")
    assert "make setup" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_command_without_the_embedded_stack_works_when_it_is_not_installed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_LOCAL, "schemas", "list", "--json"],
        env={"LEADSTREAM_HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '"form_submitted"' in done.stdout


def test_wrong_usage_exits_with_2() -> None:
    command = [sys.executable, "-m", "cli", "lag", "--no-such-option"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 2
