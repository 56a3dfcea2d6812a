"""A start on a machine where something is missing: it works without it, or one line says what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from local.attached import AttachedStack
from local.state import read_stack

pytestmark = pytest.mark.timeout(300)
# Neither a home that can be written nor a network.
NOTHING = {"HOME": "/dev/null", "HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}


def supervise(home: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LEADSTREAM_")}
    command = [sys.executable, "-m", "local.supervisor", *options]
    changed = kept | {"LEADSTREAM_HOME": str(home)} | environment
    return subprocess.run(command, env=changed, capture_output=True, text=True, timeout=120, check=False)


def the_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return the only line of a failed start."""
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    return line


def test_without_network_and_cache_one_line_says_so(tmp_path: Path) -> None:
    home = tmp_path / "home"
    repository = str(tmp_path / "m2")
    line = the_line(supervise(home, "--parts", "kafka,redis", M2_REPO=repository, **NOTHING))
    assert line.startswith("Kafka's jars cannot be downloaded from Maven Central: ")
    assert line.endswith("; check the network and start again")
    assert (read_stack(home)["state"], read_stack(home)["error"]) == ("failed", line)


@pytest.mark.integration
@pytest.mark.usefixtures("stack")  # has downloaded the jars
def test_with_the_jars_in_the_state_folder_kafka_needs_no_network_and_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Path.home() / ".cache" / "leadstream"
    jar_list = cache / "kafka-4.1.1.json"
    if not jar_list.exists():
        pytest.skip(f"{cache} cannot be written on this machine: the other tests have shown it")
    home = tmp_path / "home, ü"
    (home / "cache").mkdir(parents=True)
    (home / "cache" / jar_list.name).write_text(jar_list.read_text("utf-8"), "utf-8")
    for name, value in NOTHING.items():
        monkeypatch.setenv(name, value)
    with AttachedStack(home, "--parts", "kafka") as started:
        assert [(each["name"], each["state"]) for each in started.state["processes"]] == [("kafka", "ready")]
    assert (home / "kafka" / "meta.properties").exists()


def test_a_part_whose_folder_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "redis").touch()
    line = the_line(supervise(tmp_path, "--parts", "redis"))
    assert line.startswith("redis cannot start: ")
    assert str(tmp_path / "redis") in line
    assert json.loads((tmp_path / "stack.json").read_text("utf-8"))["error"] == line


@pytest.mark.parametrize("home", ["/dev/null/home", "/proc/home"])
def test_a_state_folder_that_cannot_be_made_is_one_line(home: str) -> None:
    assert the_line(supervise(Path(home), "--parts", "redis")).startswith("the state folder cannot be used: ")


def test_of_several_parts_that_cannot_start_one_is_named(tmp_path: Path) -> None:
    for name in ("redis", "kafka"):
        (tmp_path / name).touch()
    assert " cannot start: " in the_line(supervise(tmp_path, "--parts", "redis,kafka"))
