"""The simulator of People Data Labs as a process, without a rate limit."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

from infra.settings import child_environment
from local.ports import free_port
from tests.streams.faust.workers import wait_until


class PdlProcess:
    """Starts the simulator; close it. ``url`` is its address."""

    def __init__(self, folder: Path) -> None:
        (folder / "pdl.json").write_text(json.dumps({"per_minute": 1_000_000}))
        port = free_port()
        command = [sys.executable, "-m", "simulators", "pdl", "--port", str(port), "--state", str(folder)]
        self._process = subprocess.Popen(command, env=child_environment({}))
        self.url = f"http://127.0.0.1:{port}"
        assert wait_until(lambda: bool(self.stats()), 30)

    def stats(self) -> dict[str, int]:
        """Return its counters; empty while it is not available."""
        try:
            with urllib.request.urlopen(f"{self.url}/_simulator/stats", timeout=5) as result:  # noqa: S310 - loopback
                stats: dict[str, int] = json.loads(result.read())
                return stats
        except OSError:
            return {}

    def faults(self, **faults: float) -> None:
        """Set the faults of all following calls; none: it works."""
        request = urllib.request.Request(f"{self.url}/_simulator/faults", json.dumps(faults).encode(), method="POST")  # noqa: S310
        urllib.request.urlopen(request, timeout=5).close()  # noqa: S310 - loopback

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait(30)
