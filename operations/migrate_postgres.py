"""Migrations of Postgres.

Guarantees: each file runs in one transaction together with its row in ``schema_migrations``. An advisory lock makes
processes that migrate at the same time wait for each other.

Crash: nothing of the current file is applied.
"""

from __future__ import annotations

from pathlib import Path

import asyncpg

import infra.postgres
from operations import migrations
from operations.migrations import MigrationError

FOLDER = Path(infra.postgres.__file__).parent / "migrations"
_LOCK = 0x6C656164  # "lead"

_TABLE = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    name text PRIMARY KEY, checksum text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now()
)
"""


async def migrate(dsn: str, folder: Path = FOLDER) -> list[str]:
    """Migrate the database of ``dsn`` and return the names of the files applied now.

    Raises:
        MigrationError: a file failed or has changed; nothing of it is applied, the files before it are.

    """
    connection = await asyncpg.connect(dsn, timeout=10)
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", _LOCK)
        return await migrations.migrate(_Postgres(connection), folder)
    finally:
        await connection.close()  # releases the lock


class _Postgres:
    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def applied(self) -> dict[str, str]:
        await self._connection.execute(_TABLE)
        rows = await self._connection.fetch("SELECT name, checksum FROM schema_migrations")
        return {row["name"]: row["checksum"] for row in rows}

    async def apply(self, name: str, sql: str, checksum: str) -> None:
        record = "INSERT INTO schema_migrations (name, checksum) VALUES ($1, $2)"
        try:
            async with self._connection.transaction():
                await self._connection.execute(sql)
                await self._connection.execute(record, name, checksum)
        except asyncpg.PostgresError as error:
            raise MigrationError(f"{name}: {error}") from error
