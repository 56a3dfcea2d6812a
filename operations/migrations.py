"""Migrations: the .sql files of a folder in order of their names, each applied once, each with its checksum.

What Postgres and ClickHouse have in common; a :class:`Target` is what differs.

Guarantee: a file that is already recorded is not applied again. One that was applied and has changed since is an error,
before anything after it is applied.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol


class MigrationError(Exception):
    """A migration that was applied has changed, or one fails; the message names the file."""


class Target(Protocol):
    """A database with a table of what was applied to it."""

    async def applied(self) -> dict[str, str]:
        """Return the checksums of the applied files by name; create the table where there is none."""
        ...

    async def apply(self, name: str, sql: str, checksum: str) -> None:
        """Run the statements of the file ``name`` and record it.

        Raises:
            MigrationError: naming the file; it is not recorded.

        """
        ...


async def migrate(target: Target, folder: Path) -> list[str]:
    """Apply what is missing and return the names of the files that were applied now.

    Raises:
        MigrationError: naming the file; the files before it are applied.

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
            raise MigrationError(f"{path.name} was applied and has changed since: restore it and add a new file")
    return now
