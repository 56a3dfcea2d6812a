"""Migrations of a temporary ClickHouse database: applied once, repeatable, and errors that name the file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from infra.clickhouse.client import ClickHouse
from infra.errors import DependencyUnavailable
from operations.migrate_clickhouse import FOLDER, migrate
from operations.migrations import MigrationError
from tests.conftest import Stack

pytestmark = pytest.mark.integration


@pytest.fixture
async def url(stack: Stack, unique: str) -> AsyncIterator[str]:
    """Return the address of a database that does not exist yet."""
    name = f"migrate_{unique}"
    yield f"{stack.clickhouse_url.rpartition('/')[0]}/{name}"
    async with ClickHouse(stack.clickhouse_url) as server:
        await server.execute(f"DROP DATABASE IF EXISTS {name}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    people = "-- who; and how\nCREATE TABLE IF NOT EXISTS people (id Int32) ENGINE = ReplacingMergeTree ORDER BY id;\n"
    (tmp_path / "001_people.sql").write_text(people)
    (tmp_path / "002_names.sql").write_text("ALTER TABLE people ADD COLUMN IF NOT EXISTS name String;\n")
    return tmp_path


async def rows(url: str, statement: str) -> list[dict[str, Any]]:
    async with ClickHouse(url) as server:
        return await server.query(statement)


async def names(url: str) -> list[str]:
    return [row["name"] for row in await rows(url, "SELECT name FROM schema_migrations FINAL ORDER BY name")]


async def test_the_shipped_migrations_create_the_database_and_a_second_run_changes_nothing(url: str) -> None:
    assert await migrate(url) == sorted(path.name for path in FOLDER.glob("*.sql"))
    before = await rows(url, "SELECT * FROM schema_migrations FINAL ORDER BY name")
    assert await migrate(url) == []
    assert await rows(url, "SELECT * FROM schema_migrations FINAL ORDER BY name") == before
    there = {row["name"] for row in await rows(url, "SHOW TABLES")}
    assert {"lead_events", "leads", "outcomes", "dead_letters"} <= there


async def test_every_statement_of_the_shipped_migrations_can_be_repeated(url: str) -> None:
    await migrate(url)
    before = await rows(url, "SELECT name, create_table_query FROM system.tables WHERE database = currentDatabase()")
    async with ClickHouse(url) as server:
        await server.execute("TRUNCATE TABLE schema_migrations")  # as after a crash before the file was recorded
    assert await migrate(url) == sorted(path.name for path in FOLDER.glob("*.sql"))
    again = await rows(url, "SELECT name, create_table_query FROM system.tables WHERE database = currentDatabase()")
    assert sorted(again, key=str) == sorted(before, key=str)


async def test_processes_that_start_together_end_in_the_same_state(url: str) -> None:
    await asyncio.gather(*(migrate(url) for _ in range(4)))
    assert await names(url) == sorted(path.name for path in FOLDER.glob("*.sql"))
    assert await migrate(url) == []


async def test_a_new_file_is_applied_to_an_existing_database(url: str, folder: Path) -> None:
    await migrate(url, folder)
    (folder / "003_more.sql").write_text("INSERT INTO people VALUES (2, 'Ada');\n")
    assert await migrate(url, folder) == ["003_more.sql"]
    assert await rows(url, "SELECT id, name FROM people") == [{"id": 2, "name": "Ada"}]


async def test_an_applied_file_that_has_changed_is_named(url: str, folder: Path) -> None:
    await migrate(url, folder)
    (folder / "001_people.sql").write_text("CREATE TABLE IF NOT EXISTS people (id Int64) ENGINE = Null;\n")
    with pytest.raises(MigrationError, match=r"001_people\.sql was applied and has changed"):
        await migrate(url, folder)


@pytest.mark.parametrize(
    "wrong", ["SELEC 1;", "INSERT INTO nowhere VALUES (1);", "ALTER TABLE people ADD COLUMN id X;"]
)
async def test_a_failing_file_is_named_and_can_be_corrected(url: str, folder: Path, wrong: str) -> None:
    (folder / "003_broken.sql").write_text(f"CREATE TABLE IF NOT EXISTS first (id Int32) ENGINE = Null;\n{wrong}\n")
    for _ in range(2):
        with pytest.raises(MigrationError, match=r"^003_broken\.sql: "):
            await migrate(url, folder)
    assert await names(url) == ["001_people.sql", "002_names.sql"]
    (folder / "003_broken.sql").write_text("CREATE TABLE IF NOT EXISTS first (id Int32) ENGINE = Null;\n")
    assert await migrate(url, folder) == ["003_broken.sql"]


async def test_an_unavailable_server_is_reported() -> None:
    with pytest.raises(DependencyUnavailable, match="ClickHouse"):
        await migrate("http://127.0.0.1:1/leadstream")
