"""Migrations of ClickHouse: the .sql files of ``migrations/`` in order of their names, each once, each checksummed.

ClickHouse has no transactions over tables and no locks to share, so every statement of a file can be repeated (IF NOT
EXISTS): two processes that start at the same time, or one that died in the middle, end in the same state. What is
applied is written down last. A file that was applied and has changed since is an error.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from urllib.parse import urlsplit

from infra.clickhouse.client import ClickHouse, ClickHouseError

FOLDER = Path(__file__).parent / "migrations"
_COMMENT = re.compile(r"^\s*--.*$", re.MULTILINE)

_TABLE = """
CREATE TABLE IF NOT EXISTS schema_migrations (name String, checksum String, applied_at DateTime DEFAULT now())
ENGINE = ReplacingMergeTree ORDER BY name
"""


class MigrationError(Exception):
    """A migration that was applied has changed, or one does not run; the message names the file."""


async def migrate(url: str, folder: Path = FOLDER) -> list[str]:
    """Make the database of ``url`` where it is missing, bring it up to date, return the files applied now.

    Raises:
        MigrationError: naming the file; the statements before the one that failed are applied.
        DependencyAway: ClickHouse is not reachable.

    """
    files = {path.name: path.read_text("utf-8") for path in sorted(folder.glob("*.sql"))}  # noqa: ASYNC240 - at start
    database = urlsplit(url).path.strip("/") or "default"
    async with ClickHouse(url, database="default") as server:
        await server.execute(f"CREATE DATABASE IF NOT EXISTS `{database}`")
    async with ClickHouse(url) as server:
        await server.execute(_TABLE)
        rows = await server.query("SELECT name, checksum FROM schema_migrations FINAL")
        applied = {row["name"]: row["checksum"] for row in rows}
        return [name for name, sql in files.items() if await _apply(server, name, sql, applied)]


async def _apply(server: ClickHouse, name: str, sql: str, applied: dict[str, str]) -> bool:
    checksum = hashlib.sha256(sql.encode()).hexdigest()
    if name in applied:
        if applied[name] != checksum:
            raise MigrationError(f"{name} was applied and has changed since: put it back and add a new file")
        return False
    try:
        for statement in _COMMENT.sub("", sql).split(";\n"):
            if statement.strip():
                await server.execute(statement)
        insert = "INSERT INTO schema_migrations (name, checksum) VALUES ({name:String}, {checksum:String})"
        await server.execute(insert, name=name, checksum=checksum)
    except ClickHouseError as error:
        raise MigrationError(f"{name}: {error}") from error
    return True
