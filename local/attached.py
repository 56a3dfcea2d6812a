"""A stack that stops when whoever started it ends, however that ends. For tests and measurements."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

from infra.settings import child_environment
from local.part import PartError, tail

_START_S = 180.0
_STOP_S = 90.0
_LOOK_S = 0.05


class AttachedStack:
    """The embedded stack of the folder ``home``; ``words`` are options of the supervisor."""

    def __init__(self, home: Path, *words: str) -> None:
        self.home = home
        self._words = words
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def state(self) -> dict[str, Any]:
        """What the supervisor last wrote: see ``leadstream status --json``."""
        try:
            found: dict[str, Any] = json.loads((self.home / "stack.json").read_text("utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return found

    def start(self) -> Self:
        """Start it and wait until all of it is healthy.

        Raises:
            PartError: it did not start; the message says why.

        """
        self.home.mkdir(parents=True, exist_ok=True)
        (self.home / "stack.json").unlink(missing_ok=True)
        log = self.home / "supervisor.log"
        command = [sys.executable, "-m", "local.supervisor", "--until-eof", *self._words]
        with log.open("ab") as out:
            # This stack serves what it was asked for, not what the environment happens to say.
            environment = child_environment({"LEADSTREAM_HOME": str(self.home.resolve())}, inherit=False)
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=out, env=environment)
        deadline = time.monotonic() + _START_S
        while (state := self.state).get("state") != "up":
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise PartError(f"the stack did not start: {state.get('error') or tail(log)}")
            time.sleep(_LOOK_S)
        return self

    def stop(self) -> None:
        """Stop it and wait until every process of it is gone."""
        if self._process is None or self._process.stdin is None:
            return
        self._process.stdin.close()
        self._process.wait(timeout=_STOP_S)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
