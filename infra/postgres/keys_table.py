"""The table ``api_keys``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import asyncpg

from infra.clock import Clock, now_us
from infra.keys import ApiKey, check_permissions, digest_of, id_of, new_key
from infra.postgres.pool import INFINITY, connection, transaction

_ACTIVE = "revoked_at IS NULL AND expires_at > now()"
_COLUMNS = "key_id, tenant, scopes, expires_at, digest"
_NO_KEY = "there is no active key {}: list them with `leadstream keys list`"


class NoSuchKeyError(LookupError):
    """No active key has this id."""


class KeysTable:
    """Reads and writes ``api_keys``. Every method raises DependencyUnavailable while Postgres is unavailable."""

    def __init__(self, pool: asyncpg.Pool, now: Clock = now_us) -> None:
        self._pool = pool
        self._now = now

    async def active(self, limit: int) -> dict[bytes, ApiKey]:
        """Return the active keys by digest: at most ``limit``, those that were used last."""
        statement = f"SELECT {_COLUMNS} FROM api_keys WHERE {_ACTIVE} ORDER BY last_used DESC NULLS LAST LIMIT $1"  # noqa: S608
        return await self._keys(statement, limit)

    async def find(self, digests: Sequence[bytes]) -> dict[bytes, ApiKey]:
        """Return those of ``digests`` that belong to an active key."""
        return await self._keys(f"SELECT {_COLUMNS} FROM api_keys WHERE digest = ANY($1) AND {_ACTIVE}", digests)  # noqa: S608

    async def _keys(self, statement: str, argument: object) -> dict[bytes, ApiKey]:
        async with connection(self._pool) as lent:
            rows = await lent.fetch(statement, argument)
        return {r["digest"]: ApiKey(r["key_id"], r["tenant"], frozenset(r["scopes"]), r["expires_at"]) for r in rows}

    async def note_used(self, ids: Sequence[str]) -> None:
        """Store that the keys ``ids`` were used today. At most one write for each key and day."""
        async with connection(self._pool) as lent:
            await lent.execute(
                "UPDATE api_keys SET last_used = current_date"
                " WHERE key_id = ANY($1) AND last_used IS DISTINCT FROM current_date",
                ids,
            )

    async def create(
        self, tenant: str, scopes: Sequence[str], *, name: str = "", expires_at: int = INFINITY
    ) -> tuple[str, str]:
        """Create a key and return its id and the key, which cannot be read again.

        Raises:
            KeyInvalidError: see :func:`infra.keys.check_permissions`.

        """
        check_permissions(tenant, scopes)
        key_id, key = new_key()
        await self._insert(key_id, key, tenant, scopes, name, expires_at)
        return key_id, key

    async def register(self, key: str, tenant: str, scopes: Sequence[str], *, name: str) -> bool:
        """Insert a key that was made elsewhere; return whether it was new. A revoked key stays revoked.

        Raises:
            KeyInvalidError: the text is not a key, or see :func:`infra.keys.check_permissions`.

        """
        check_permissions(tenant, scopes)
        return await self._insert(id_of(key), key, tenant, scopes, name, INFINITY)

    async def _insert(
        self, key_id: str, key: str, tenant: str, scopes: Sequence[str], name: str, expires_at: int
    ) -> bool:
        async with connection(self._pool) as lent:
            done = await lent.execute(
                "INSERT INTO api_keys (key_id, digest, tenant, scopes, name, expires_at)"
                " VALUES ($1, $2, $3, $4, $5, $6)"
                " ON CONFLICT (key_id) DO NOTHING",
                key_id,
                digest_of(key.encode()),
                tenant,
                sorted(set(scopes)),
                name,
                expires_at,
            )
        return bool(done == "INSERT 0 1")

    async def revoke(self, key_id: str) -> None:
        """Revoke a key: within 5 s no instance of the API admits it. A repeated call has no effect.

        Raises:
            NoSuchKeyError: there is no key with this id.

        """
        async with connection(self._pool) as lent:
            statement = "UPDATE api_keys SET revoked_at = coalesce(revoked_at, now()) WHERE key_id = $1"
            if await lent.execute(statement, key_id) == "UPDATE 0":
                raise NoSuchKeyError(_NO_KEY.format(key_id))

    async def rotate(self, key_id: str, *, overlap_us: int) -> tuple[str, str]:
        """Create a key with the permissions and the name of ``key_id``, which expires ``overlap_us`` later.

        Returns:
            The id of the new key, and the key.

        Raises:
            NoSuchKeyError: no active key has this id.

        """
        new_id, key = new_key()
        async with transaction(self._pool) as lent:
            copied = await lent.execute(
                "INSERT INTO api_keys (key_id, digest, tenant, scopes, name, expires_at)"  # noqa: S608
                " SELECT $2, $3, tenant, scopes, name,"
                " CASE WHEN isfinite(expires_at) THEN now() + (expires_at - created_at) ELSE expires_at END"
                f" FROM api_keys WHERE key_id = $1 AND {_ACTIVE}",
                key_id,
                new_id,
                digest_of(key.encode()),
            )
            if copied == "INSERT 0 0":
                raise NoSuchKeyError(_NO_KEY.format(key_id))
            statement = "UPDATE api_keys SET expires_at = least(expires_at, $2) WHERE key_id = $1"
            await lent.execute(statement, key_id, self._now() + overlap_us)
        return new_id, key

    async def list(self, *, every: bool) -> list[dict[str, Any]]:
        """Return the keys without their digests, newest first; ``every``: those that are not active too."""
        state = (
            "CASE WHEN revoked_at IS NOT NULL THEN 'revoked' WHEN expires_at <= now() THEN 'expired' ELSE 'active' END"
        )
        async with connection(self._pool) as lent:
            rows = await lent.fetch(
                f"SELECT key_id AS id, tenant, scopes, name, {state} AS state, created_at,"  # noqa: S608
                " nullif(expires_at, 'infinity') AS expires_at, revoked_at, last_used::text"
                f" FROM api_keys WHERE $1 OR ({_ACTIVE}) ORDER BY created_at DESC",
                every,
            )
        return [dict(row) for row in rows]
