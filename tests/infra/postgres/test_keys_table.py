"""The table of API keys: only hashes are stored; expiry, revocation and rotation."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest

from infra.clock import now_us
from infra.keys import KeyInvalidError, digest_of, id_of, new_key
from infra.postgres.keys_table import KeysTable, NoSuchKeyError
from infra.postgres.pool import close, connect
from tests.conftest import Stack

pytestmark = pytest.mark.integration
HOUR_US = 3_600_000_000


@pytest.fixture
async def pool(stack: Stack) -> AsyncIterator[asyncpg.Pool]:
    opened = await connect(stack.dsn, size=2, application="test")
    yield opened
    await close(opened)


@pytest.fixture
def keys(pool: asyncpg.Pool) -> KeysTable:
    return KeysTable(pool)


async def active(keys: KeysTable, key: str) -> bool:
    digest = digest_of(key.encode())
    found = digest in await keys.find([digest])
    assert found == (digest in await keys.active(10_000))
    return found


async def test_a_key_is_stored_as_its_hash_only(keys: KeysTable, pool: asyncpg.Pool, unique: str) -> None:
    key_id, key = await keys.create(unique, ["ingest", "read", "read"], name="shop")
    assert id_of(key) == key_id
    (permitted,) = (await keys.find([digest_of(key.encode())])).values()
    assert (permitted.id, permitted.tenant, permitted.scopes) == (key_id, unique, frozenset({"ingest", "read"}))
    row = await pool.fetchval("SELECT to_jsonb(api_keys)::text FROM api_keys WHERE key_id = $1", key_id)
    assert key not in row
    assert key[16:] not in row
    (listed,) = [each for each in await keys.list(every=False) if each["id"] == key_id]
    assert (listed["state"], listed["scopes"], listed["name"], listed["expires_at"], listed["last_used"]) == (
        "active",
        ["ingest", "read"],
        "shop",
        None,
        None,
    )


async def test_a_revoked_or_expired_key_is_not_active(keys: KeysTable, unique: str) -> None:
    key_id, key = await keys.create(unique, ["ingest"])
    assert await active(keys, key)
    await keys.revoke(key_id)
    await keys.revoke(key_id)
    assert not await active(keys, key)
    _, expired = await keys.create(unique, ["ingest"], expires_at=now_us() - 1)
    assert not await active(keys, expired)
    states = {each["id"]: each["state"] for each in await keys.list(every=True)}
    assert (states[key_id], states[id_of(expired)]) == ("revoked", "expired")
    with pytest.raises(NoSuchKeyError, match="keys list"):
        await keys.revoke("nosuchkey000")
    with pytest.raises(NoSuchKeyError):
        await keys.rotate(key_id, overlap_us=0)


async def test_a_rotation_overlaps_and_keeps_permissions(keys: KeysTable, unique: str) -> None:
    old_id, old = await keys.create(unique, ["ingest", "erase"], name="shop")
    new_id, new = await keys.rotate(old_id, overlap_us=HOUR_US)
    assert (await active(keys, old), await active(keys, new)) == (True, True)
    listed = {each["id"]: each for each in await keys.list(every=False)}
    assert {n: listed[new_id][n] for n in ("tenant", "scopes", "name", "expires_at")} == {
        "tenant": unique,
        "scopes": ["erase", "ingest"],
        "name": "shop",
        "expires_at": None,
    }
    assert abs(listed[old_id]["expires_at"] - now_us() - HOUR_US) < HOUR_US // 10
    newest_id, newest = await keys.rotate(new_id, overlap_us=0)
    assert (await active(keys, new), await active(keys, newest)) == (False, True)
    assert newest_id not in {old_id, new_id}


async def test_a_registered_key_that_was_revoked_stays_revoked(keys: KeysTable) -> None:
    key_id, key = new_key()
    assert await keys.register(key, "*", ["admin"], name="stack")
    assert not await keys.register(key, "*", ["admin"], name="stack")
    await keys.revoke(key_id)
    assert not await keys.register(key, "*", ["admin"], name="stack")
    assert not await active(keys, key)


async def test_the_day_of_the_last_use(keys: KeysTable, unique: str) -> None:
    key_id, _ = await keys.create(unique, ["ingest"])
    await keys.note_used([key_id])
    assert {each["id"]: each["last_used"] for each in await keys.list(every=False)}[key_id]


@pytest.mark.parametrize(
    ("tenant", "scopes", "problem"),
    [
        ("acme", [], "at least one scope"),
        ("acme", ["ingest", "all"], "no such scope: all"),
        ("*", ["ingest", "read"], "admin or pipeline"),
        ("ACME", ["ingest"], "not a tenant"),
        ("", ["ingest"], "not a tenant"),
        ("a/b", ["ingest"], "not a tenant"),
    ],
)
async def test_what_a_key_cannot_permit(keys: KeysTable, tenant: str, scopes: list[str], problem: str) -> None:
    before = len(await keys.list(every=True))
    with pytest.raises(KeyInvalidError, match=problem):
        await keys.create(tenant, scopes)
    assert len(await keys.list(every=True)) == before


async def test_a_text_that_is_no_key_is_not_registered_nor_repeated(keys: KeysTable) -> None:
    with pytest.raises(KeyInvalidError) as refused:
        await keys.register("my secret", "*", ["admin"], name="x")
    assert "my secret" not in str(refused.value)
