"""Connection pool of Postgres: times as integers, and the errors that mean that Postgres is unavailable.

Every connection of a pool maps ``timestamptz`` to integer microseconds since 1970 UTC, the unit of :mod:`infra.clock`,
in arguments, results, arrays and COPY. :data:`INFINITY` and :data:`MINUS_INFINITY` are Postgres's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import asyncpg

from infra.errors import DependencyUnavailable
from infra.retry import raise_if_cancelled

UNAVAILABLE_ERRORS = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,  # the connection was closed during its use
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.DiskFullError,
    asyncpg.ReadOnlySQLTransactionError,  # after a fail-over, until the address points to the new primary
)

_EPOCH = 946_684_800_000_000  # 2000-01-01 in microseconds since 1970: what timestamptz counts from
INFINITY = 2**63 - 1 + _EPOCH
MINUS_INFINITY = -(2**63) + _EPOCH

_ACQUIRE_S = 5.0  # also bounds how long a connection is reset for when it is given back
_CLOSE_S = 2.0

Init = Callable[[asyncpg.Connection], Awaitable[None]]


async def connect(dsn: str, *, size: int, application: str, init: Init | None = None) -> asyncpg.Pool:
    """Open a pool of up to ``size`` connections. Each is opened when needed, so Postgres may be unavailable now.

    ``application``: the name of the process in ``pg_stat_activity``. ``init`` is called with each new connection.
    """

    async def prepare(connection: asyncpg.Connection) -> None:
        await connection.set_type_codec(
            "timestamptz",
            schema="pg_catalog",
            format="tuple",
            encoder=lambda at_us: (at_us - _EPOCH,),
            decoder=lambda row: row[0] + _EPOCH,
        )
        if init is not None:
            await init(connection)

    return await asyncpg.create_pool(
        dsn,
        min_size=0,
        max_size=size,
        timeout=5,
        command_timeout=60,
        init=prepare,
        server_settings={"application_name": f"leadstream-{application}", "jit": "off"},
    )


async def close(pool: asyncpg.Pool) -> None:
    """Close the pool within about two seconds: connections that do not close in time are dropped."""
    with suppress(*UNAVAILABLE_ERRORS):  # TimeoutError included
        async with asyncio.timeout(_CLOSE_S):
            await pool.close()  # drops open connections when it is cancelled


@asynccontextmanager
async def transaction(pool: asyncpg.Pool) -> AsyncIterator[asyncpg.Connection]:
    """Run the body in one transaction. A cancellation is never reported as an unavailable Postgres.

    Raises:
        DependencyUnavailable: Postgres is unavailable; it is unknown whether the transaction was committed.

    """
    with _classified():
        async with pool.acquire(timeout=_ACQUIRE_S) as connection, connection.transaction():
            yield connection


@asynccontextmanager
async def connection(pool: asyncpg.Pool) -> AsyncIterator[asyncpg.Connection]:
    """Provide a connection without a transaction. A cancellation is never reported as an unavailable Postgres.

    Raises:
        DependencyUnavailable: Postgres is unavailable; it is unknown whether the statement took effect.

    """
    with _classified():
        async with pool.acquire(timeout=_ACQUIRE_S) as lent:
            yield lent


@asynccontextmanager
async def as_tenant(pool: asyncpg.Pool, tenant: str) -> AsyncIterator[asyncpg.Connection]:
    """Run the body in a transaction that sees only the rows of ``tenant``, whatever its statements are.

    It cannot write: the role has no right to.

    Guarantees: the role and the tenant end with the transaction, so a pooler (PgBouncer) may share the connection.

    Raises:
        DependencyUnavailable: Postgres is unavailable.

    """
    with _classified():
        async with pool.acquire(timeout=_ACQUIRE_S) as connection, connection.transaction():
            await connection.execute("SET LOCAL ROLE leadstream_api")
            await connection.execute("SELECT set_config('leadstream.tenant', $1, true)", tenant)
            yield connection


@contextmanager
def _classified() -> Iterator[None]:
    try:
        yield
    except UNAVAILABLE_ERRORS as error:
        if isinstance(error, ValueError):  # asyncpg's InterfaceError is one if a value does not fit its type: a bug
            raise
        raise_if_cancelled(error)  # a broken connection also fails when a cancelled task returns it to the pool
        raise DependencyUnavailable("Postgres", error) from error
