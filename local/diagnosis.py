"""Why a process did not start: the end of its log, and what to do about the errors that are known."""

from __future__ import annotations

import os
from pathlib import Path

from local.process_spec import NOT_INSTALLED

_TAIL_BYTES = 8192
# Text in the end of a log -> what to do.
_ADVICE = {
    "No space left on device": "the disk is full; free some space and start the stack again",
    "Address already in use": "another program uses its port; stop that program, or delete ports.json in the state "
    "folder to get other ports",
    "Cannot allocate memory": "the machine has too little free memory; stop other programs and start the stack again",
    "ModuleNotFoundError: No module named": NOT_INSTALLED,
    "Permission denied": "another user owns the state folder or a file in it; change the owner, or set LEADSTREAM_HOME "
    "to another folder",
}


def log_tail(log: Path, lines: int = 8) -> str:
    """Return the last ``lines`` lines of a log, at most 8 KiB, or ``(no log)`` when the file is missing."""
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return "(no log)"


def advice(log_end: str) -> str:
    """Return what to do about the error at the end of a log, or an empty string for an unknown error."""
    return next((fix for error, fix in _ADVICE.items() if error in log_end), "")
