"""``make bench-memory``: drains large backlogs by intake and by the ClickHouse sink; prints the peak memory of each.

Two backlogs: 20,000 small events on 200 leads of 100 KB (2 GB of changes), and 1,000,000 small events. Each process
has the setting ``LEADSTREAM_MEMORY_MB`` = 512. Where control groups can be made (Linux, root), the kernel ends it above
512 MB. Exit code 1 if a process ended or its peak was higher.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.events import fill
from infra.clock import now_us
from infra.kafka_settings import KafkaSettings
from infra.settings import child_environment
from local.attached import AttachedStack
from operations.lag import LagReader
from schemas.codec import Codec
from tests.events import record

_LIMIT_MB = 512
_LARGE_LEADS, _ON_LARGE = 200, 20_000
_KEYS, _KEY_CHARACTERS = 13, 8000  # of a large lead: 100 KB
_CHUNK = 50_000
_TIMEOUT_S = 1500.0
_WORKERS = {"intake": ["streams.intake"], "sink-clickhouse": ["sinks", "clickhouse"]}
_CGROUPS = Path("/sys/fs/cgroup/memory")

Event = tuple[bytes, bytes]  # key, value


class Worker:
    """One process, in a control group with a limit if possible."""

    def __init__(self, name: str, environment: dict[str, str], log: Path) -> None:
        self.name = name
        self.group = _control_group(name)
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *_WORKERS[name]], stdout=out, stderr=out, env=child_environment(environment)
            )
        if self.group is not None:
            (self.group / "cgroup.procs").write_text(str(self._process.pid), "utf-8")

    def peak_mb(self) -> float:
        """Return the peak resident memory so far, in MB; raise if the process has ended."""
        if self._process.poll() is not None:
            raise SystemExit(f"{self.name} ended with {self._process.returncode}")
        status = Path(f"/proc/{self._process.pid}/status").read_text("utf-8")
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024

    def stop(self) -> None:
        """Stop the process and remove its control group."""
        self._process.terminate()
        self._process.wait(60)
        if self.group is not None:
            self.group.rmdir()


def _control_group(name: str) -> Path | None:
    group = _CGROUPS / f"leadstream-{name}-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(_LIMIT_MB << 20), "utf-8")
    except OSError:
        return None
    return group


def _large() -> Iterator[Event]:
    encode, tenant = Codec().encoder("lead_updated"), f"large-{uuid.uuid4().hex[:8]}"
    for number in range(_LARGE_LEADS + _ON_LARGE):
        email = f"{number % _LARGE_LEADS}@example.com"
        own: dict[str, Any] = {"title": f"title {number}"}
        if number < _LARGE_LEADS:
            own["custom"] = {f"key-{n}": os.urandom(_KEY_CHARACTERS // 2).hex() for n in range(_KEYS)}
        made = record("lead_updated", f"e-{number}", at=now_us(), tenant=tenant, email=email, **own)
        yield email.encode(), encode(made)


def _small(count: int) -> Iterator[Event]:
    encode, tenant = Codec().encoder("form_submitted"), f"small-{uuid.uuid4().hex[:8]}"
    for number in range(count):
        email = f"{number % (count // 5)}@example.com"
        own = {"first_name": "Ada", "company": "Example Ltd", "form_id": "demo"}
        made = record("form_submitted", f"e-{number}", at=now_us(), tenant=tenant, email=email, **own)
        yield email.encode(), encode(made)


def _send(settings: KafkaSettings, events: Iterator[Event]) -> int:
    sent = 0
    while chunk := [event for _, event in zip(range(_CHUNK), events, strict=False)]:
        fill(settings, "leads.received", chunk)
        sent += len(chunk)
    return sent


def _drain(settings: KafkaSettings, workers: Sequence[Worker], group: str) -> float:
    """Wait until ``group`` has no lag; return the seconds."""
    began = time.monotonic()
    reader = LagReader(settings)
    while True:
        for worker in workers:
            worker.peak_mb()
        if reader.totals()[group].messages == 0:
            reader.close()
            return time.monotonic() - began
        if time.monotonic() > began + _TIMEOUT_S:
            raise SystemExit(f"{group} still has lag after {_TIMEOUT_S:.0f} s")
        time.sleep(1)


def main() -> None:
    """Run both backlogs and print a line for each process and backlog."""
    parser = argparse.ArgumentParser(prog="python -m bench.memory")
    parser.add_argument("--small", type=int, default=1_000_000, help="events of the second backlog (%(default)s)")
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="leadstream-memory-"))
    worst = 0.0
    try:
        with AttachedStack(home / "stack", "--no-pipeline") as stack:
            settings = KafkaSettings(kafka_bootstrap=stack.state["kafka"]["bootstrap"])
            environment = {"LEADSTREAM_HOME": str(home / "stack"), "LEADSTREAM_MEMORY_MB": str(_LIMIT_MB)}
            for backlog, events in (("large leads", _large()), ("small events", _small(options.small))):
                sent = _send(settings, events)
                for name in _WORKERS:
                    worker = Worker(name, environment, home / f"{name}.log")
                    seconds = _drain(settings, [worker], name)
                    peak = worker.peak_mb()
                    limited = worker.group is not None
                    worker.stop()
                    worst = max(worst, peak)
                    result = {"backlog": backlog, "process": name, "events": sent, "seconds": round(seconds, 1)}
                    print(json.dumps(result | {"peak_mb": round(peak, 1), "limited": limited}), flush=True)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    raise SystemExit(worst > _LIMIT_MB)


if __name__ == "__main__":
    main()
