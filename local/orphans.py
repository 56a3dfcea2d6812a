"""Processes that outlive a killed supervisor: recorded when they start, ended by the next supervisor."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

import psutil

from local.state import read_json, write_atomically

_END_S = 5.0


class StartedProcesses:
    """The record, in ``processes.json``, of the processes that the supervisor of a state folder has started.

    The kernel ends them when the supervisor dies (Linux). On other systems, and for a process that hangs, the next
    supervisor ends them.
    """

    def __init__(self, home: Path) -> None:
        self._file = home / "processes.json"
        self._entries: dict[str, dict[str, float]] = {}

    def record(self, name: str, pid: int, death_signal: int) -> None:
        """Record a process that has just started.

        A write error (a full disk) is ignored: the process still runs, but the next supervisor cannot end it.
        """
        with suppress(psutil.NoSuchProcess, OSError):
            started = psutil.Process(pid).create_time()
            self._entries[name] = {"pid": pid, "started": started, "signal": int(death_signal)}
            write_atomically(self._file, json.dumps(self._entries))

    def clear(self) -> None:
        """Remove the record, after all processes have ended."""
        self._file.unlink(missing_ok=True)

    def end_orphans(self) -> None:
        """End the processes that an earlier supervisor left running, and their children.

        Guarantees: a process that has since reused a recorded process id is not touched (its start time differs).
        """
        orphans: list[psutil.Process] = []
        for entry in read_json(self._file).values():
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(int(entry["pid"]))
                if process.create_time() == entry["started"]:
                    orphans += [process, *process.children(recursive=True)]
                    os.kill(process.pid, int(entry["signal"]))
        for process in psutil.wait_procs(orphans, _END_S)[1]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(orphans, _END_S)
        self.clear()
