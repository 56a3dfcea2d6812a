"""The key of the suppression list, and the keyed hashes of erased identities.

A hash is HMAC-SHA-256 of tenant, kind and normal form, cut to 128 bits. Without the key nobody can find out whether an
address was erased by hashing addresses. So keep the key apart from backups of the database: set
``LEADSTREAM_SUPPRESSION_KEY``. Without this setting a random key is made and stored in the table ``suppression_key``.

A lost key cannot be replaced: no event is recognised as one of an erased person any more. So intake does not start with
a key other than the one of the list.
"""

from __future__ import annotations

import hmac
import secrets

import asyncpg

from infra.postgres.pool import transaction
from infra.settings import SettingsError
from streams.intake.event import Identity

_CHECKED = b"leadstream suppressions"
_BYTES = 16

_LOCK = "LOCK TABLE suppression_key IN SHARE ROW EXCLUSIVE MODE"
_READ = "SELECT key, check_hash FROM suppression_key"
_STORE = "INSERT INTO suppression_key (key, check_hash) VALUES ($1, $2)"


class SuppressionKey:
    """Hashes identities with ``key``."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def hash(self, identity: Identity) -> bytes:
        """Return the hash of an identity: 16 bytes."""
        # No part has a NUL character, so different identities are different texts.
        return hmac.digest(self._key, "\0".join(identity).encode("utf-8", "surrogatepass"), "sha256")[:_BYTES]

    @property
    def check_hash(self) -> bytes:
        """The hash that recognises the key."""
        return hmac.digest(self._key, _CHECKED, "sha256")[:_BYTES]


async def load_key(pool: asyncpg.Pool, setting: str) -> SuppressionKey:
    """Return the key of this installation. The first call stores what recognises it; without ``setting``, a new key.

    Raises:
        SettingsError: ``setting`` is not the key of the list, or is missing.
        DependencyUnavailable: Postgres is unavailable.

    """
    async with transaction(pool) as connection:
        row = await connection.fetchrow(_READ)
        if row is None:
            await connection.execute(_LOCK)
            row = await connection.fetchrow(_READ)
        if row is None:
            key = SuppressionKey(setting.encode() if setting else (made := secrets.token_bytes(32)))
            await connection.execute(_STORE, None if setting else made, key.check_hash)
            return key
    if row["key"] is None and not setting:
        raise SettingsError(
            "LEADSTREAM_SUPPRESSION_KEY is not set, but the list of erased identities was made with it: set it to the "
            "same value as before"
        )
    key = SuppressionKey(row["key"] if row["key"] is not None else setting.encode())
    if setting and not hmac.compare_digest(SuppressionKey(setting.encode()).check_hash, row["check_hash"]):
        raise SettingsError(
            "LEADSTREAM_SUPPRESSION_KEY is not the key with which the list of erased identities was made: set the "
            "former value (see docs/guides/erasure.md)"
        )
    return key
