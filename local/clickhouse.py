"""ClickHouse: the engine in chDB behind our small server, which is the one process that owns the folder."""

from __future__ import annotations

import sys
from pathlib import Path

from local.part import Part, answers


def clickhouse(home: Path, port: int) -> Part:
    """Return how to run ClickHouse's HTTP interface on ``port`` with its data in ``home``."""
    command = [sys.executable, "-m", "local.clickhouse_server", "--path", str(home / "clickhouse")]
    return Part("clickhouse", [*command, "--port", str(port)], lambda: answers(port, "/ping"))
