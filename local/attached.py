"""A stack that stops when the process that started it ends, even by SIGKILL. For tests and benchmarks."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from infra.settings import child_environment
from local.diagnosis import log_tail
from local.process_spec import StackError
from local.state import read_stack

_START_S = 180.0
_STOP_S = 90.0
_POLL_S = 0.05


class AttachedStack:
    """The embedded stack in the state folder ``home``; ``options`` are command-line options of the supervisor.

    ``settings``: environment variables that its processes have besides LEADSTREAM_HOME.

    Crash: the supervisor reads the end of its standard input and stops the stack.
    """

    def __init__(self, home: Path, *options: str, settings: Mapping[str, str] | None = None) -> None:
        self.home = home
        self._settings = dict(settings or {})
        self._options = options
        self._supervisor: subprocess.Popen[bytes] | None = None

    @property
    def state(self) -> dict[str, Any]:
        """The content of ``stack.json``, as ``leadstream status --json`` prints it; empty when the file is missing."""
        return read_stack(self.home)

    def start(self) -> Self:
        """Start the stack and wait until the supervisor reports ``up``.

        Raises:
            StackError: the stack did not start within 180 seconds; the message says why.

        """
        self.home.mkdir(parents=True, exist_ok=True)
        (self.home / "stack.json").unlink(missing_ok=True)
        log = self.home / "supervisor.log"
        command = [sys.executable, "-m", "local.supervisor", "--until-eof", *self._options]
        with log.open("ab") as out:
            # Settings of the caller's environment must not change what this stack runs.
            own = self._settings | {"LEADSTREAM_HOME": str(self.home.resolve())}
            environment = child_environment(own, inherit=False)
            self._supervisor = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=out, env=environment)
        deadline = time.monotonic() + _START_S
        while (state := self.state).get("state") != "up":
            if self._supervisor.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise StackError(f"the stack did not start: {state.get('error') or log_tail(log)}")
            time.sleep(_POLL_S)
        return self

    def stop(self) -> None:
        """Stop the stack and wait until all of its processes have ended. Raises TimeoutExpired after 90 seconds."""
        if self._supervisor is None or self._supervisor.stdin is None:
            return
        self._supervisor.stdin.close()
        self._supervisor.wait(timeout=_STOP_S)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
