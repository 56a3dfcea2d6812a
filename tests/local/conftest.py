"""A supervisor over tiny processes, and what is left of one."""

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

from local.state import read

FAKE = Path(__file__).with_name("fake_stack.py")
WAIT_S = 60.0

STEADY = "ready(); wait()"
STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nready()\nwhile True: wait()"


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait until ``condition`` gives something true and return it; fail after a minute."""
    deadline = time.monotonic() + WAIT_S
    while not (found := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {WAIT_S} s: {what}")
        time.sleep(0.02)
    return found


def processes_of(home: Path) -> list[psutil.Process]:
    """Return every living process that belongs to a state folder, however it detached itself."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            mine = process.environ().get("LEADSTREAM_HOME") == str(home)
            if mine or any(str(home) in word for word in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def gone(home: Path) -> None:
    """Wait until no process of a state folder is left."""
    until(lambda: not processes_of(home), f"no process of {home}")


class Fake:
    """One supervisor over tiny processes."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, **steps: dict[str, str]) -> subprocess.Popen[bytes]:
        self.home.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(FAKE), str(self.home), json.dumps(steps)]
        with (self.home / "supervisor.log").open("ab") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out)
        return self.process

    def up(self, **steps: dict[str, str]) -> dict[str, Any]:
        self.start(**steps)
        until(lambda: self.state.get("state") == "up", "the fake stack is up")
        return self.state

    @property
    def state(self) -> dict[str, Any]:
        return read(self.home)

    def of(self, name: str) -> dict[str, Any]:
        return next(each for each in self.state["processes"] if each["name"] == name)

    def signal(self, number: int) -> int:
        """Signal the supervisor and return its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(WAIT_S)


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Fake]:
    started = Fake(tmp_path / "home")
    yield started
    if started.process is not None and started.process.poll() is None:
        started.signal(signal.SIGTERM)
    gone(started.home)
