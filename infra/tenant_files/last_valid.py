"""Keeps the last valid content of each tenant file in Postgres, for processes that start while a file is invalid.

Guarantees: a tenant whose file was valid at any time is served with that content also after a restart, until the file
is corrected. A file holds no secrets, so neither does the table. Intake writes it; every worker reads it at its start.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import asyncpg

from infra.errors import DependencyUnavailable
from infra.postgres.pool import connection
from infra.runtime import Stop
from infra.tenants import Tenants

_AGAIN_S = 1.0
_READ = "SELECT tenant, content FROM tenant_files WHERE tenant = ANY($1::text[])"
_WRITE = """
INSERT INTO tenant_files AS f (tenant, content) SELECT * FROM unnest($1::text[], $2::bytea[]) AS d(tenant, content)
ORDER BY tenant
ON CONFLICT (tenant) DO UPDATE SET content = excluded.content, valid_at = now() WHERE f.content <> excluded.content
"""


async def restore_last_valid(tenants: Tenants, pool: asyncpg.Pool, stop: Stop) -> None:
    """Use the last valid content of the files that are invalid now; wait while Postgres is unavailable.

    Without an invalid file it does nothing, so a start does not depend on Postgres.
    """

    async def read() -> None:
        async with connection(pool) as postgres:
            rows = await postgres.fetch(_READ, sorted(tenants.problems))
        for row in rows:
            tenants.restore(row["tenant"], row["content"])

    if tenants.problems:
        await _repeat(read, stop)


async def keep_valid(tenants: Tenants, pool: asyncpg.Pool, stop: Stop) -> None:
    """Store the content of the valid files; wait while Postgres is unavailable."""
    contents = tenants.contents

    async def write() -> None:
        async with connection(pool) as postgres:
            await postgres.execute(_WRITE, list(contents), list(contents.values()))

    await _repeat(write, stop)


async def _repeat(step: Callable[[], Awaitable[None]], stop: Stop) -> None:
    while not stop.requested:
        try:
            await step()
        except DependencyUnavailable:  # the work of the process reports it
            await stop.wait(_AGAIN_S)
        else:
            return
