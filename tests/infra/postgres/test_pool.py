"""Times are integer microseconds in both directions, including the two infinities."""

from __future__ import annotations

from datetime import UTC, datetime

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.clock import from_datetime
from infra.postgres.pool import INFINITY, MINUS_INFINITY, connect
from tests.conftest import Stack

pytestmark = pytest.mark.integration

FIRST = from_datetime(datetime(1, 1, 1, tzinfo=UTC))
LAST = from_datetime(datetime(9999, 12, 31, tzinfo=UTC))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(at=st.lists(st.integers(FIRST, LAST), min_size=1, max_size=5))
async def test_any_time_is_returned_unchanged_and_is_the_same_time_in_postgres(stack: Stack, at: list[int]) -> None:
    async with await connect(stack.dsn, size=1, application="tests") as pool:
        assert await pool.fetchval("SELECT $1::timestamptz[]", at) == at
        row = await pool.fetchrow(
            "SELECT $1::timestamptz, (extract(epoch FROM $1::timestamptz) * 1000000)::bigint", at[0]
        )
        assert tuple(row) == (at[0], at[0])


async def test_the_infinities_are_constants_and_null_is_none(pool: asyncpg.Pool) -> None:
    row = await pool.fetchrow("SELECT 'infinity'::timestamptz, '-infinity'::timestamptz, NULL::timestamptz")
    assert tuple(row) == (INFINITY, MINUS_INFINITY, None)
    row = await pool.fetchrow("SELECT $1::timestamptz = 'infinity', $2::timestamptz = '-infinity'", *row[:2])
    assert tuple(row) == (True, True)


async def test_times_are_integers_in_a_copy_too(pool: asyncpg.Pool, unique: str) -> None:
    await pool.execute(f"CREATE TABLE times_{unique} (at timestamptz)")
    await pool.copy_records_to_table(f"times_{unique}", records=[(1,), (INFINITY,), (None,)], columns=["at"])
    assert [row[0] for row in await pool.fetch(f"SELECT at FROM times_{unique} ORDER BY at")] == [1, INFINITY, None]  # noqa: S608


async def test_init_is_called_with_each_new_connection(stack: Stack) -> None:
    seen: list[int] = []

    async def init(connection: asyncpg.Connection) -> None:
        seen.append(await connection.fetchval("SELECT '1970-01-01 00:00:01Z'::timestamptz"))

    async with await connect(stack.dsn, size=1, application="tests", init=init) as pool:
        await pool.execute("SELECT 1")
    assert seen == [1_000_000]
