"""The user of ``leadstream query`` reads tables and changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.clickhouse.client import ClickHouse, ClickHouseError
from local.clickhouse_access import READER, USER
from tests.local.test_clickhouse_server import Server

pytestmark = pytest.mark.integration
_READONLY = 164


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("clickhouse") / "data")
    asyncio.run(running.start())
    running.execute("CREATE TABLE kept (n UInt64) ENGINE = MergeTree ORDER BY n")
    running.execute("INSERT INTO kept VALUES (7)")
    yield running
    running.http.close()
    running.stop()


def url(server: Server, user: str) -> str:
    password = {READER: "may-only-read", USER: "p%3A%C3%BC%20%252F%27%22%5C"}[user]
    return f"http://{user}:{password}@127.0.0.1:{server.port}/default"


@pytest.mark.parametrize("user", [READER, USER])
async def test_it_reads(server: Server, user: str) -> None:
    async with ClickHouse(url(server, user), read_only=True) as client:
        assert await client.query("SELECT n FROM kept") == [{"n": 7}]
        assert await client.query("SELECT n FROM kept WHERE n = {n:UInt64}", n=7) == [{"n": 7}]
        assert await client.query("SHOW TABLES") == [{"name": "kept"}]


@pytest.mark.parametrize("user", [READER, USER])
@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO kept VALUES (8)",
        "INSERT INTO kept FORMAT TSV\n8\n",
        "INSERT INTO kept SELECT 8",
        "DROP TABLE kept",
        "TRUNCATE TABLE kept",
        "ALTER TABLE kept DELETE WHERE 1",
        "CREATE TABLE more (n UInt64) ENGINE = MergeTree ORDER BY n",
        "SET readonly = 0",
        "SELECT 1 SETTINGS readonly = 0",
        "SELECT * FROM file('/etc/passwd', 'LineAsString')",
        "SELECT file('/etc/hostname')",
        "SELECT 1 INTO OUTFILE '{folder}/written'",
        "SELECT * FROM url('http://127.0.0.1:1/', 'LineAsString')",
        "SYSTEM FLUSH LOGS",
    ],
)
async def test_it_changes_nothing(server: Server, user: str, statement: str, tmp_path: Path) -> None:
    async with ClickHouse(url(server, user), read_only=True) as client:
        with pytest.raises(ClickHouseError) as refused:
            await client.query(statement.replace("{folder}", str(tmp_path)))
        assert refused.value.code == _READONLY
        assert await client.query("SELECT n FROM kept") == [{"n": 7}]
    assert not (tmp_path / "written").exists()
    assert server.execute("INSERT INTO kept VALUES (7)") == ""  # the other user still writes
    server.execute("ALTER TABLE kept DELETE WHERE 1 SETTINGS mutations_sync = 2")
    server.execute("INSERT INTO kept VALUES (7)")
