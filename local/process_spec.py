"""What the supervisor needs to know about a process: how to start it, how to check it and how to stop it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL, SIGTERM

NOT_INSTALLED = "the packages of the embedded stack are not installed; run `make setup` in the checkout"


class StackError(Exception):
    """The stack or one of its processes cannot start. The message says what is wrong and how to fix it."""


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """How one process is run.

    ``is_ready`` returns whether the process can be used now; it must not block and must not raise. ``command`` starts
    with an absolute path. ``stop_s`` is the time in seconds between ``stop_signal`` and SIGKILL.
    """

    name: str
    command: list[str]
    is_ready: Callable[[], Awaitable[bool]]
    environment: Mapping[str, str] = field(default_factory=dict)  # added to the environment of the stack
    folder: Path | None = None  # working directory; None: that of the supervisor
    user: int | None = None  # user id to run as (Postgres refuses to run as root); it gets no setting of leadstream
    nice: int = 0  # added to the supervisor's niceness: a higher value is a lower scheduling priority
    stop_signal: int = SIGTERM
    stop_s: float = 15
    prepare: Callable[[], None] | None = (
        None  # called in a thread before each start; blocks; raises StackError or OSError
    )
    # Sent by the kernel when the supervisor dies. No process is left to kill one that hangs, so it is SIGKILL: every
    # part recovers from it.
    death_signal: int = SIGKILL
