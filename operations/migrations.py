"""Applies the .sql files of a folder in the order of their names, each once, and records their checksums.

Shared by Postgres and ClickHouse, each of which is a :class:`Target`.

Guarantees: a recorded file is not applied again. If a recorded file has changed, migrating stops before the files after
it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol


class MigrationError(Exception):
    """An applied migration has changed, or a migration fails; the message names the file."""


class Target(Protocol):
    """A database with a table of its applied migrations."""

    async def applied(self) -> dict[str, str]:
        """Return the checksums of the applied files by name; create their table if it is missing."""
        ...

    async def apply(self, name: str, sql: str, checksum: str) -> None:
        """Run the statements of the file ``name`` and record it.

        Raises:
            MigrationError: a statement failed; the file is not recorded.

        """
        ...


async def migrate(target: Target, folder: Path) -> list[str]:
    """Apply the files that are not recorded and return their names.

    Raises:
        MigrationError: a file failed or has changed; the files before it are applied.

    """
    applied = await target.applied()
    now: list[str] = []
    for path in sorted(folder.glob("*.sql")):  # noqa: ASYNC240 - at start
        sql = path.read_text("utf-8")
        checksum = hashlib.sha256(sql.encode()).hexdigest()
        recorded = applied.get(path.name)
        if recorded is None:
            await target.apply(path.name, sql, checksum)
            now.append(path.name)
        elif recorded != checksum:
            raise MigrationError(
                f"{path.name} was applied and has changed since: restore it, and put the change in a new file"
            )
    return now
