"""Processes that a killed supervisor left behind: known by what it wrote down, ended by the next one."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

import psutil

from local.state import load, write

_LEFT_S = 5.0


class Remembered:
    """The processes of this folder, so that a supervisor that was killed leaves none behind for long.

    The kernel ends them where it can (Linux); elsewhere, and for what hangs, the next supervisor does.
    """

    def __init__(self, home: Path) -> None:
        self._file = home / "processes.json"
        self._known: dict[str, dict[str, float]] = {}

    def add(self, name: str, pid: int, death_signal: int) -> None:
        """Remember a process that was started now; where the disk is full, only the kernel is left to end it."""
        with suppress(psutil.NoSuchProcess, OSError):
            started = psutil.Process(pid).create_time()
            self._known[name] = {"pid": pid, "started": started, "signal": int(death_signal)}
            write(self._file, json.dumps(self._known))

    def forget(self) -> None:
        """Forget all: they were ended."""
        self._file.unlink(missing_ok=True)

    def sweep(self) -> None:
        """End what an earlier supervisor left: those processes and no others, whoever has their ids by now."""
        left: list[psutil.Process] = []
        for entry in load(self._file).values():
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(int(entry["pid"]))
                if process.create_time() == entry["started"]:
                    left += [process, *process.children(recursive=True)]
                    os.kill(process.pid, int(entry["signal"]))
        for process in psutil.wait_procs(left, _LEFT_S)[1]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, _LEFT_S)
        self.forget()
