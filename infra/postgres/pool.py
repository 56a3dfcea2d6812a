"""Connections to the canonical record, and which of its errors mean that it is away."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import asyncpg

from infra.errors import DependencyAway

AWAY = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,  # the connection was closed under us
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.DiskFullError,
    asyncpg.ReadOnlySQLTransactionError,  # a replica after a fail-over, until the address points to the new primary
)


async def connect(
    dsn: str, *, size: int, application: str, init: Callable[[asyncpg.Connection], Awaitable[None]] | None = None
) -> asyncpg.Pool:
    """Open a pool of up to ``size`` connections, made when first needed, so that it opens while Postgres is away.

    ``application`` shows in ``pg_stat_activity``: give the process's name. ``init`` is called with each new connection.
    """
    return await asyncpg.create_pool(
        dsn,
        min_size=0,
        max_size=size,
        timeout=5,
        command_timeout=60,
        init=init,
        server_settings={"application_name": f"leadstream-{application}", "jit": "off"},
    )


@asynccontextmanager
async def transaction(pool: asyncpg.Pool) -> AsyncIterator[asyncpg.Connection]:
    """Run the body in one transaction; a lost server becomes DependencyAway, and then nothing of it is certain."""
    try:
        async with pool.acquire() as connection, connection.transaction():
            yield connection
    except AWAY as error:
        if isinstance(error, ValueError):  # asyncpg's InterfaceError is one where a value does not fit its type: a bug
            raise
        raise DependencyAway("Postgres", error) from error


@asynccontextmanager
async def connection(pool: asyncpg.Pool) -> AsyncIterator[asyncpg.Connection]:
    """Lend a connection outside a transaction; a lost server becomes DependencyAway."""
    try:
        async with pool.acquire() as lent:
            yield lent
    except AWAY as error:
        if isinstance(error, ValueError):  # asyncpg's InterfaceError is one where a value does not fit its type: a bug
            raise
        raise DependencyAway("Postgres", error) from error
