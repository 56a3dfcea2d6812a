"""Migrations of ClickHouse.

ClickHouse has neither transactions over tables nor shared locks, so every statement of a file has to be repeatable (IF
NOT EXISTS). A file is recorded after its last statement.

Guarantees: processes that migrate at the same time end in the same state.

Crash: some statements of the current file are applied; the next run repeats the whole file.
"""

from __future__ import annotations

import re
from pathlib import Path

import infra.clickhouse
from infra.clickhouse.client import ClickHouse, ClickHouseError
from operations import migrations
from operations.migrations import MigrationError

FOLDER = Path(infra.clickhouse.__file__).parent / "migrations"
_COMMENT = re.compile(r"^\s*--.*$", re.MULTILINE)

_TABLE = """
CREATE TABLE IF NOT EXISTS schema_migrations (name String, checksum String, applied_at DateTime DEFAULT now())
ENGINE = ReplacingMergeTree ORDER BY name
"""


async def migrate(url: str, folder: Path = FOLDER) -> list[str]:
    """Create the database of ``url`` if it is missing, migrate it and return the names of the files applied now.

    Raises:
        MigrationError: a file failed or has changed; the statements before the failed one are applied.
        DependencyUnavailable: ClickHouse is unavailable.

    """
    async with ClickHouse(url) as server:
        await server.create_database()
        return await migrations.migrate(_ClickHouse(server), folder)


class _ClickHouse:
    def __init__(self, server: ClickHouse) -> None:
        self._server = server

    async def applied(self) -> dict[str, str]:
        await self._server.execute(_TABLE)
        rows = await self._server.query("SELECT name, checksum FROM schema_migrations FINAL")
        return {row["name"]: row["checksum"] for row in rows}

    async def apply(self, name: str, sql: str, checksum: str) -> None:
        record = "INSERT INTO schema_migrations (name, checksum) VALUES ({name:String}, {checksum:String})"
        try:
            for statement in _COMMENT.sub("", sql).split(";\n"):
                if statement.strip():
                    await self._server.execute(statement)
            await self._server.execute(record, name=name, checksum=checksum)
        except ClickHouseError as error:
            raise MigrationError(f"{name}: {error}") from error
