"""A supervisor over small test processes, and a check that no process of it is left."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from local.state import read_stack

PROGRAM = Path(__file__).with_name("small_stack.py")
WAIT_S = 60.0

RUNS = "ready(); wait()"
IGNORES_SIGTERM = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nready()\nwhile True: wait()"


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait until ``condition`` returns a true value and return that; fail after a minute."""
    deadline = time.monotonic() + WAIT_S
    while not (found := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {WAIT_S} s: {what}")
        time.sleep(0.02)
    return found


def processes_of(home: Path) -> list[psutil.Process]:
    """Return every running process of a state folder, also one that has left its session or process group."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            belongs = process.environ().get("LEADSTREAM_HOME") == str(home)
            if belongs or any(str(home) in word for word in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_until_ended(home: Path) -> None:
    """Wait until no process of a state folder runs."""
    until(lambda: not processes_of(home), f"all processes of {home} have ended")


class SmallStack:
    """The real supervisor over small test processes."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.supervisor: subprocess.Popen[bytes] | None = None

    def start(self, **steps: dict[str, str]) -> subprocess.Popen[bytes]:
        self.home.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(PROGRAM), str(self.home), json.dumps(steps)]
        with (self.home / "supervisor.log").open("ab") as out:
            self.supervisor = subprocess.Popen(command, stdout=out, stderr=out)
        return self.supervisor

    def up(self, **steps: dict[str, str]) -> dict[str, Any]:
        self.start(**steps)
        until(lambda: self.state.get("state") == "up", "the stack is up")
        return self.state

    @property
    def state(self) -> dict[str, Any]:
        return read_stack(self.home)

    def process(self, name: str) -> dict[str, Any]:
        return next(each for each in self.state["processes"] if each["name"] == name)

    def signal(self, number: int) -> int:
        """Signal the supervisor and return its exit code."""
        assert self.supervisor is not None
        self.supervisor.send_signal(number)
        return self.supervisor.wait(WAIT_S)


@pytest.fixture
def small_stack(tmp_path: Path) -> Iterator[SmallStack]:
    started = SmallStack(tmp_path / "home")
    yield started
    if started.supervisor is not None and started.supervisor.poll() is None:
        started.signal(signal.SIGTERM)
    wait_until_ended(started.home)
