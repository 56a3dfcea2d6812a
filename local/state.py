"""The state folder's own files: who runs, where, and with which settings.

``supervisor.lock``  held for as long as a supervisor lives, so that there is one
``stack.json``       what runs where, always whole (written beside, then renamed); stays after a failed start
``stack.env``        the settings that reach the stack, readable by its owner only; gone after a stop
``ports.json``       the ports, kept over restarts while they are free
``processes.json``   what was started, see :mod:`local.leftovers`
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from local.part import PartError, free_port

_LOCK_S = 2.0
_LOOK_S = 0.05


class TakenError(PartError):
    """Another supervisor runs in this state folder."""


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """Hold the state folder. Raises TakenError where another supervisor does."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "supervisor.lock").open("w") as lock:
        deadline = time.monotonic() + _LOCK_S  # somebody who only looks (running) holds it for a moment
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TakenError(f"a stack already runs in {home}; see `leadstream status`") from None
                time.sleep(_LOOK_S)
            else:
                break
        yield


def running(home: Path) -> bool:
    """Return whether a supervisor of ``home`` lives: starting, up or stopping."""
    try:
        with (home / "supervisor.lock").open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def read(home: Path) -> dict[str, Any]:
    """Return what the supervisor of ``home`` last wrote, or nothing."""
    return load(home / "stack.json")


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file so that a reader sees the old or the new one, whole."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    fresh.touch(mode)
    fresh.write_text(text, "utf-8")
    fresh.replace(path)


def write_environment(home: Path, environment: Mapping[str, str]) -> None:
    """Leave the settings where every command of this folder finds them."""
    lines = (f"{name}={value}\n" for name, value in environment.items() if name != "LEADSTREAM_HOME")
    write(home / "stack.env", "".join(lines), 0o600)


def ports(home: Path, names: list[str], set_by_user: Mapping[str, int]) -> dict[str, int]:
    """Return a port for each name: what the user set, else the one of last time where it is free, else a free one."""
    before = load(home / "ports.json")
    chosen = dict(set_by_user)
    for name in names:
        if name not in chosen:
            chosen[name] = free_port(before.get(name, 0), chosen.values())
    write(home / "ports.json", json.dumps(before | chosen, indent=1))
    return chosen


def load(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, empty where there is none."""
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found
