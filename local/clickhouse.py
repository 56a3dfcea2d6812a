"""ClickHouse: chDB, the ClickHouse engine in a wheel, behind the HTTP server of :mod:`local.clickhouse_server`."""

from __future__ import annotations

import sys
from pathlib import Path

from local.ports import http_ready
from local.process_spec import ProcessSpec


def clickhouse(home: Path, port: int, password_file: Path, reader_file: Path) -> ProcessSpec:
    """Return how to run ClickHouse's HTTP interface on ``port`` with its data in the state folder ``home``.

    The files hold the passwords of the user ``leadstream`` and of ``reader``, who may only read.
    """
    command = [sys.executable, "-m", "local.clickhouse_server", "--path", str(home / "clickhouse")]
    command += ["--port", str(port), "--password-file", str(password_file), "--reader-password-file", str(reader_file)]
    return ProcessSpec("clickhouse", command, lambda: http_ready(port, "/ping"))
