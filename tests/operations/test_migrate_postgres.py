"""Migrations of a temporary Postgres database: applied once, also by concurrent processes, errors name the file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from operations.migrate_postgres import FOLDER, migrate
from operations.migrations import MigrationError
from tests.conftest import Stack

pytestmark = pytest.mark.integration


@pytest.fixture
async def dsn(stack: Stack, unique: str) -> AsyncIterator[str]:
    """Return the address of an empty database."""
    name = f"migrate_{unique}"
    server = await asyncpg.connect(stack.dsn)
    await server.execute(f"CREATE DATABASE {name}")
    yield f"{stack.dsn.rpartition('/')[0]}/{name}"
    await server.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await server.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "001_people.sql").write_text("CREATE TABLE people (id int);\nINSERT INTO people VALUES (1);")
    (tmp_path / "002_names.sql").write_text("ALTER TABLE people ADD name text;")
    return tmp_path


async def rows(dsn: str, statement: str) -> list[tuple[object, ...]]:
    connection = await asyncpg.connect(dsn)
    try:
        return [tuple(row) for row in await connection.fetch(statement)]
    finally:
        await connection.close()


async def test_the_shipped_migrations_run_once_and_a_second_run_changes_nothing(dsn: str) -> None:
    applied = await migrate(dsn)
    assert applied == sorted(path.name for path in FOLDER.glob("*.sql"))
    before = await rows(dsn, "SELECT * FROM schema_migrations ORDER BY name")
    assert await migrate(dsn) == []
    assert await rows(dsn, "SELECT * FROM schema_migrations ORDER BY name") == before


async def test_processes_that_start_together_apply_each_file_once(dsn: str, folder: Path) -> None:
    applied = await asyncio.gather(*(migrate(dsn, folder) for _ in range(5)))
    assert sorted(name for each in applied for name in each) == ["001_people.sql", "002_names.sql"]
    assert await rows(dsn, "SELECT id, name FROM people") == [(1, None)]


async def test_a_new_file_is_applied_to_an_existing_database(dsn: str, folder: Path) -> None:
    await migrate(dsn, folder)
    (folder / "003_more.sql").write_text("INSERT INTO people VALUES (2, 'Ada');")
    assert await migrate(dsn, folder) == ["003_more.sql"]
    assert await rows(dsn, "SELECT id, name FROM people ORDER BY id") == [(1, None), (2, "Ada")]


async def test_an_applied_file_that_has_changed_is_named(dsn: str, folder: Path) -> None:
    await migrate(dsn, folder)
    (folder / "001_people.sql").write_text("CREATE TABLE people (id bigint);")
    (folder / "003_more.sql").write_text("CREATE TABLE more (id int);")
    with pytest.raises(MigrationError, match=r"001_people\.sql was applied and has changed"):
        await migrate(dsn, folder)
    assert await rows(dsn, "SELECT to_regclass('more')") == [(None,)]


@pytest.mark.parametrize("wrong", ["CREATE TABLE half (id int); SELEC 1;", "INSERT INTO people VALUES ('one');"])
async def test_a_failing_file_is_named_and_nothing_of_it_is_applied(dsn: str, folder: Path, wrong: str) -> None:
    (folder / "003_broken.sql").write_text(f"CREATE TABLE before_it (id int);\n{wrong}")
    for _ in range(2):
        with pytest.raises(MigrationError, match=r"^003_broken\.sql: "):
            await migrate(dsn, folder)
    assert await rows(dsn, "SELECT to_regclass('before_it'), to_regclass('half')") == [(None, None)]
    assert await rows(dsn, "SELECT name FROM schema_migrations ORDER BY name") == [
        ("001_people.sql",),
        ("002_names.sql",),
    ]
    (folder / "003_broken.sql").write_text("CREATE TABLE before_it (id int);")  # never applied, so it may be corrected
    assert await migrate(dsn, folder) == ["003_broken.sql"]
