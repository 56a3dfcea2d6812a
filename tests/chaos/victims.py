"""The processes of a running stack as the victims of faults: killed, paused, and timed until they are ready again."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from local.state import read_stack
from tests.conftest import eventually

_POLL_S = 0.1


class Victims:
    """The processes of the stack in ``home``. ``recovery_s``: name -> seconds from each kill until it was ready."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._down: dict[str, tuple[int, float]] = {}  # name -> the killed process id, and when
        self.paused: set[str] = set()
        self.kills: Counter[str] = Counter()
        self.recovery_s: dict[str, list[float]] = {}

    def pids(self) -> dict[str, int]:
        """Return the process id of each process that is ready (or waits for a dependency) and not paused."""
        running = read_stack(self._home).get("processes", [])
        return {
            each["name"]: each["pid"]
            for each in running
            if each["state"] in {"ready", "waiting"} and each["pid"] and each["name"] not in self.paused
        }

    def kill(self, name: str) -> bool:
        """End a process by SIGKILL; return False if it does not run now."""
        self.look()
        pid = self.pids().get(name)
        if pid is None or name in self._down:
            return False
        os.kill(pid, signal.SIGKILL)
        self._down[name] = (pid, time.monotonic())
        self.kills[name] += 1
        return True

    async def watch(self) -> None:
        """Note when killed processes are ready again, until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(_POLL_S)

    def look(self) -> None:
        """Note which killed processes are ready again."""
        states = {each["name"]: each for each in read_stack(self._home).get("processes", [])}
        for name, (pid, at) in list(self._down.items()):
            if (now := states.get(name, {})).get("state") == "ready" and now["pid"] != pid:
                self.recovery_s.setdefault(name, []).append(time.monotonic() - at)
                del self._down[name]

    async def recovered(self, timeout_s: float) -> None:
        """Wait until every killed process is ready again."""

        def none_is_down() -> bool:
            self.look()
            return not self._down

        await eventually(none_is_down, timeout_s)

    @contextmanager
    def frozen(self, name: str) -> Iterator[int]:
        """Pause a process and its children (SIGSTOP) for the body of the ``with``; yield its process id."""
        pid = self.pids()[name]
        self.paused.add(name)
        process = psutil.Process(pid)
        stopped = [process, *process.children(recursive=True)]
        for each in stopped:
            with suppress(psutil.NoSuchProcess):
                each.suspend()
        try:
            yield pid
        finally:
            for each in stopped:
                with suppress(psutil.NoSuchProcess):
                    each.resume()
            self.paused.discard(name)
