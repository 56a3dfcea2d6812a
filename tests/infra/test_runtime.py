"""The end of a worker process: its exit code and its last log lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Stack

ROOT = Path(__file__).parents[2]
DOUBLED = """
import asyncpg
from infra.runtime import run

async def main(settings, stop):
    connection = await asyncpg.connect(settings.database_url)
    await connection.execute("CREATE TEMPORARY TABLE t (email text PRIMARY KEY)")
    try:
        await connection.execute("INSERT INTO t SELECT unnest($1::text[])", ["ada@example.com"] * 2)
    except asyncpg.UniqueViolationError as error:
        raise ExceptionGroup("several", [RuntimeError("it went wrong"), error]) from error

run(main, "worker")
"""
TOGETHER = """
import asyncio
from infra.runtime import run, run_together

async def fails():
    raise ValueError("the cause")

async def main(settings, stop):
    await run_together(fails(), asyncio.Event().wait())

run(main, "worker")
"""
CYCLIC = """
from infra.runtime import run

async def main(settings, stop):
    try:
        raise ExceptionGroup("group", [ValueError("the cause")])
    except ExceptionGroup as group:
        raise group.exceptions[0] from None

run(main, "worker")
"""


def start(program: str, **settings: str) -> subprocess.Popen[bytes]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LEADSTREAM_")} | settings
    return subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env=environment, stdout=subprocess.PIPE)


@pytest.mark.parametrize("program", [TOGETHER, CYCLIC], ids=["first of several", "its context holds it"])
def test_an_unexpected_error_is_logged_once_as_json_and_ends_the_process(program: str) -> None:
    out, _ = (worker := start(program)).communicate(timeout=60)
    assert worker.returncode == 1
    (line,) = [json.loads(line) for line in out.splitlines() if b"exception" in line]
    assert "ValueError: the cause" in line["exception"]


@pytest.mark.integration
def test_an_unexpected_error_of_postgres_is_logged_without_the_row(stack: Stack) -> None:
    worker = start(DOUBLED, LEADSTREAM_DATABASE_URL=stack.dsn)
    out, _ = worker.communicate(timeout=60)
    assert worker.returncode == 1
    assert b"UniqueViolationError" in out
    assert b"it went wrong" in out
    servers = b"".join(file.read_bytes() for file in (stack.home / "logs").glob("postgres*"))
    assert b"duplicate key" in servers
    assert b"ada@" not in out + servers
