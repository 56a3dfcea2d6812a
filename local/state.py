"""The files of the state folder: which process runs, where it listens, and with which settings.

``supervisor.lock``  locked while a supervisor runs, so that a folder has at most one
``stack.json``       what runs and where, with passwords: readable by the owner only; replaced atomically; stays after
                     a failed start
``stack.env``        the settings that connect to the stack; readable by the owner only; removed by a stop
``ports.json``       the ports; reused by the next start while they are free
``*.secret``         the passwords of parts and simulators; each readable by the owner only
``kafka.json``       the number of Kafka brokers and the id that they share
``processes.json``   the processes that were started, see :mod:`local.orphans`
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from local.ports import free_port
from local.process_spec import StackError

_LOCK_S = 2.0
_POLL_S = 0.05


class AlreadyRunningError(StackError):
    """Another supervisor runs in this state folder."""


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """Hold the lock of the state folder ``home`` for the body of the ``with``; create the folder if it is missing.

    Crash: the kernel releases the lock when the process ends.

    Raises:
        AlreadyRunningError: another supervisor still holds the lock after two seconds.

    """
    home.mkdir(parents=True, exist_ok=True)
    with (home / "supervisor.lock").open("w") as lock:
        deadline = time.monotonic() + _LOCK_S  # is_running() in another process holds it for a moment
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise AlreadyRunningError(f"a stack already runs in {home}; see `leadstream status`") from None
                time.sleep(_POLL_S)
            else:
                break
        yield


def is_running(home: Path) -> bool:
    """Return whether a supervisor of ``home`` runs: it is starting, up or stopping."""
    try:
        with (home / "supervisor.lock").open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def read_stack(home: Path) -> dict[str, Any]:
    """Return the content of ``stack.json`` in ``home``, or an empty dict when the file is missing."""
    return read_json(home / "stack.json")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, or an empty dict when the file is missing or is not JSON."""
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found


def write_atomically(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace a file. A reader sees the old content or the new content, never a part of either."""
    replacement = path.with_name(path.name + ".new")
    replacement.unlink(missing_ok=True)
    replacement.touch(mode)
    replacement.write_text(text, "utf-8")
    replacement.replace(path)


def write_environment(home: Path, environment: Mapping[str, str]) -> None:
    """Write ``stack.env``, where the commands of this state folder find the settings of the stack."""
    lines = (f"{name}={value}\n" for name, value in environment.items() if name != "LEADSTREAM_HOME")
    write_atomically(home / "stack.env", "".join(lines), 0o600)


def assign_ports(home: Path, names: list[str], set_by_user: Mapping[str, int]) -> dict[str, int]:
    """Return a port for each name and save them in ``ports.json``.

    A port is the one in ``set_by_user``, else the one of the last start if it is free, else a random free one.

    Raises:
        StackError: no free port was found.

    """
    last = read_json(home / "ports.json")
    assigned = dict(set_by_user)
    for name in names:
        if name not in assigned:
            assigned[name] = free_port(last.get(name, 0), assigned.values())
    write_atomically(home / "ports.json", json.dumps(last | assigned, indent=1))
    return assigned
