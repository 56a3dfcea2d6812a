"""The real Kafka and Postgres under the real supervisor, through the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from confluent_kafka.admin import AdminClient

from local.state import read_stack
from tests.local.conftest import processes_of, wait_until_ended

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


def leadstream(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LEADSTREAM_")}
    environment["LEADSTREAM_HOME"] = str(home)
    command = [sys.executable, "-m", "cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)


def up(home: Path) -> dict[str, Any]:
    done = leadstream(home, "up", "--parts", "kafka,postgres")
    assert done.returncode == 0, done.stderr
    assert json.loads(leadstream(home, "status", "--json").stdout)["state"] == "up"
    return read_stack(home)


async def fetch_value(dsn: str, statement: str) -> Any:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


@pytest.fixture
def homes(tmp_path: Path) -> Iterator[list[Path]]:
    both = [tmp_path / "one", tmp_path / "two"]
    yield both
    for home in both:
        leadstream(home, "down")
        wait_until_ended(home)


async def test_two_stacks_run_side_by_side_survive_a_kill_and_keep_their_ports(homes: list[Path]) -> None:
    with ThreadPoolExecutor(2) as pool:
        shown = list(pool.map(up, homes))

    assert shown[0]["kafka"] != shown[1]["kafka"]
    for each in shown:
        assert {"name", "pid", "state", "restarts"} == set(each["processes"][0])
        assert {p["name"]: p["state"] for p in each["processes"]} == {"kafka": "ready", "postgres": "ready"}
        assert len(AdminClient({"bootstrap.servers": each["kafka"]["bootstrap"]}).list_topics(timeout=10).brokers) == 1
        assert await fetch_value(each["postgres"]["dsn"], "SELECT current_user || '@' || current_database()") == (
            "leadstream@leadstream"
        )
    durable = "SELECT current_setting('fsync') || current_setting('synchronous_commit')"
    assert await fetch_value(shown[0]["postgres"]["dsn"], durable) == "onon"
    await fetch_value(shown[0]["postgres"]["dsn"], "CREATE TABLE kept AS SELECT 42 AS answer")

    again = leadstream(homes[0], "up", "--parts", "kafka,postgres")
    assert (again.returncode, "up already" in again.stderr) == (0, True)

    os.kill(shown[0]["supervisor"]["pid"], signal.SIGKILL)
    wait_until_ended(homes[0])
    assert leadstream(homes[0], "status").returncode == 1
    assert len(processes_of(homes[1])) >= 3  # the other stack still runs

    back = up(homes[0])
    assert [back[part] for part in ("kafka", "postgres")] == [shown[0][part] for part in ("kafka", "postgres")]
    assert await fetch_value(back["postgres"]["dsn"], "SELECT answer FROM kept") == 42

    restarted = leadstream(homes[0], "restart", "postgres")
    assert restarted.returncode == 0, restarted.stderr
    assert leadstream(homes[0], "down").returncode == 0
    assert processes_of(homes[0]) == []
    assert json.loads(leadstream(homes[0], "status", "--json").stdout) == {
        "state": "down",
        "error": "",
        "processes": [],
    }


def test_an_unknown_part_is_refused(tmp_path: Path) -> None:
    done = leadstream(tmp_path, "up", "--parts", "kafak")
    assert done.returncode == 1
    assert "no such process: kafak" in done.stderr
