"""An intake worker whose clock jumps while it runs. Needs libfaketime (Debian: ``apt-get install faketime``)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from infra.settings import child_environment

_PLACES = ("/usr/lib/*/faketime/libfaketime.so.1", "/usr/lib/faketime/libfaketime.so.1", "/usr/lib64/faketime/*.so.1")


def library() -> Path | None:
    """Return the library that fakes the clock of a process, if it is installed."""
    return next((found for place in _PLACES for found in Path("/").glob(place.removeprefix("/"))), None)


class SteppedWorker:
    """One intake worker, in place of the supervised one of the same ``instance``. Its monotonic clock stays right."""

    def __init__(self, home: Path, instance: str, faketime: Path) -> None:
        self._offset = home / "clock-offset"
        self.step(0)
        changes = {
            "LEADSTREAM_HOME": str(home),
            "LEADSTREAM_INSTANCE": instance,
            "LD_PRELOAD": str(faketime),
            "FAKETIME_TIMESTAMP_FILE": str(self._offset),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        with (home / "logs" / "intake-with-a-wrong-clock.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "streams.intake"],
                stdout=log,
                stderr=log,
                env=child_environment(changes, inherit=False),
            )

    def step(self, seconds: int) -> None:
        """Set the difference between the worker's clock and the right time; it counts within a second."""
        self._offset.write_text(f"{seconds:+d}\n", "ascii")

    def stop(self) -> None:
        """Stop the worker gracefully."""
        self.process.terminate()
        try:
            self.process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
