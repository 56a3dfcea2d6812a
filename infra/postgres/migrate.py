"""Migrations of Postgres: the .sql files of ``migrations/`` in order of their names, each once, each checksummed.

Guarantee: each file runs in one transaction together with its row in ``schema_migrations``; an advisory lock makes
processes that start at the same time wait for one another. A file that was applied and has changed since is an error.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import asyncpg

FOLDER = Path(__file__).parent / "migrations"
_LOCK = 0x6C656164  # "lead"

_TABLE = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    name text PRIMARY KEY, checksum text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now()
)
"""


class MigrationError(Exception):
    """A migration that was applied has changed, or one does not run; the message names the file."""


async def migrate(dsn: str, folder: Path = FOLDER) -> list[str]:
    """Bring the database up to date and return the names of the files that were applied now.

    Raises:
        MigrationError: naming the file; nothing of it is applied, the files before it are.

    """
    connection = await asyncpg.connect(dsn, timeout=10)
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", _LOCK)
        await connection.execute(_TABLE)
        rows = await connection.fetch("SELECT name, checksum FROM schema_migrations")
        applied = {row["name"]: row["checksum"] for row in rows}
        files = {path.name: path.read_text("utf-8") for path in sorted(folder.glob("*.sql"))}  # noqa: ASYNC240 - at start
        return [name for name, sql in files.items() if await _apply(connection, name, sql, applied)]
    finally:
        await connection.close()


async def _apply(connection: asyncpg.Connection, name: str, sql: str, applied: dict[str, str]) -> bool:
    checksum = hashlib.sha256(sql.encode()).hexdigest()
    if name in applied:
        if applied[name] != checksum:
            raise MigrationError(f"{name} was applied and has changed since: put it back and add a new file")
        return False
    try:
        async with connection.transaction():
            await connection.execute(sql)
            await connection.execute("INSERT INTO schema_migrations (name, checksum) VALUES ($1, $2)", name, checksum)
    except asyncpg.PostgresError as error:
        raise MigrationError(f"{name}: {error}") from error
    return True
