"""Row-level security: the role of the API sees only the rows of one tenant, whatever it asks."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from infra.postgres.pool import as_tenant, connect

pytestmark = pytest.mark.integration


@pytest.fixture
async def pool(stack: Any) -> AsyncIterator[asyncpg.Pool]:
    async with await connect(
        stack.dsn, size=1, application="tests"
    ) as pool:  # one connection: nothing may remain on it
        yield pool


async def fill(pool: asyncpg.Pool, tenant: str) -> None:
    lead_id, now = str(uuid.uuid4()), 1_770_000_000_000_000
    await pool.execute(
        "INSERT INTO leads (lead_id, tenant, version, created_at, updated_at, attributes, provenance) "
        "VALUES ($1, $2, 1, $3, $3, '{}', '{}')",
        lead_id,
        tenant,
        now,
    )
    await pool.execute("INSERT INTO identities VALUES ($1, 'email', 'ada@example.com', $2)", tenant, lead_id)
    await pool.execute("INSERT INTO lead_aliases (alias_id, lead_id) VALUES ($1, $2)", str(uuid.uuid4()), lead_id)
    await pool.execute(
        "INSERT INTO lead_merges (survivor_id, loser_id, tenant, event_id, survivor, loser, identities) "
        "VALUES ($1, $1, $2, 'e', '{}', '{}', '[]')",
        lead_id,
        tenant,
    )
    await pool.execute(
        "INSERT INTO crm_sync (destination, tenant, lead_id, wanted_version, last_wanted_at) "
        "VALUES ('rls', $1, $2, 1, $3)",
        tenant,
        lead_id,
        now,
    )
    await pool.execute("INSERT INTO enrichment_spend VALUES ($1, current_date, 1)", tenant)


async def readable(pool: asyncpg.Pool) -> list[str]:
    rows = await pool.fetch(
        "SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p') "
        "AND has_table_privilege('leadstream_api', oid, 'SELECT') ORDER BY 1"
    )
    return [row[0] for row in rows]


async def test_the_role_sees_only_rows_of_its_tenant_in_every_table_that_it_can_read(
    pool: asyncpg.Pool, unique: str
) -> None:
    mine, other = f"{unique}-a", f"{unique}-b"
    await fill(pool, mine)
    await fill(pool, other)
    tables = await readable(pool)
    assert {"leads", "identities", "lead_history", "lead_merges", "crm_sync", "messages_sent"} <= set(tables)
    seen: dict[str, set[str]] = {}
    async with as_tenant(pool, mine) as connection:
        for table in tables:
            rows = await connection.fetch(f"SELECT * FROM {table}")  # noqa: S608
            seen[table] = {row["tenant"] if "tenant" in row else str(row["lead_id"]) for row in rows}
        (lead,) = await connection.fetch("SELECT lead_id FROM leads")
    for table in ("leads", "identities", "lead_merges", "crm_sync"):
        assert seen[table] == {mine}
    assert seen.pop("lead_aliases") == {str(lead["lead_id"])}
    assert set().union(*seen.values()) == {mine}, "0 rows of others"


@pytest.mark.parametrize("tenant", ["", "nobody", "' OR true --"])
async def test_without_a_known_tenant_it_sees_nothing(pool: asyncpg.Pool, unique: str, tenant: str) -> None:
    await fill(pool, unique)
    tables = await readable(pool)
    async with as_tenant(pool, tenant) as connection:
        for table in tables:
            assert await connection.fetchval(f"SELECT count(*) FROM {table}") == 0  # noqa: S608


async def test_the_role_and_the_tenant_end_with_the_transaction(pool: asyncpg.Pool, unique: str) -> None:
    await fill(pool, unique)
    async with as_tenant(pool, "nobody") as connection:
        assert await connection.fetchval("SELECT current_user") == "leadstream_api"
    assert await pool.fetchval("SELECT current_user") != "leadstream_api"
    assert await pool.fetchval("SELECT count(*) FROM leads WHERE tenant = $1", unique) == 1, "the owner sees every row"
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("SET LOCAL ROLE leadstream_api")  # without a tenant
        assert await connection.fetchval("SELECT count(*) FROM leads") == 0


async def test_the_role_writes_nothing(pool: asyncpg.Pool, unique: str) -> None:
    await fill(pool, unique)
    for statement in ("DELETE FROM leads", "UPDATE crm_sync SET remote_id = 'x'", "TRUNCATE identities"):
        with pytest.raises(asyncpg.PostgresError):
            async with as_tenant(pool, unique) as connection:
                await connection.execute(statement)


async def test_every_table_with_rows_of_tenants_is_protected(pool: asyncpg.Pool) -> None:
    """A migration that adds a table with a column tenant calls protect_tenant_rows()."""
    rows = await pool.fetch(
        "SELECT c.relname, c.relrowsecurity AND EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid) AS protected "
        "FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid WHERE a.attname = 'tenant' "
        "AND c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition"
    )
    assert len(rows) >= 8
    assert [row["relname"] for row in rows if not row["protected"]] == []


async def test_a_partition_cannot_be_read_directly(pool: asyncpg.Pool, unique: str) -> None:
    await fill(pool, unique)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with as_tenant(pool, unique) as connection:
            await connection.fetch("SELECT * FROM leads_p0")
