"""API keys: their form, their scopes, and what a key permits.

A key is ``ls_<id>_<secret>``: 12 letters and digits that name it in lists and logs, and 256 random bits in base64url.
It is shown once, when it is created; only its SHA-256 is stored (:mod:`infra.postgres.keys_table`).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256

INGEST, READ, OPERATE, ADMIN, PIPELINE, ERASE = "ingest", "read", "operate", "admin", "pipeline", "erase"
SCOPES = {
    INGEST: "send and validate events; read the schemas",
    READ: "read leads and schemas",
    OPERATE: "replay, resync and other operations",
    ADMIN: "manage keys and tenants",
    PIPELINE: "send events as the pipeline does: its own sources, changes in a CRM, enrichment results",
    ERASE: "send lead_erased",
}
EVERY_TENANT = "*"
_FORM = re.compile(rb"ls_[a-z0-9]{12}_[A-Za-z0-9_-]{43}")
_TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_ID_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_FOR_EVERY_TENANT = frozenset({ADMIN, PIPELINE})


class KeyInvalidError(ValueError):
    """A key cannot be created like this; the message says why and how to fix it."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What a key permits. ``expires_at`` is in microseconds since 1970. It does not contain the key itself."""

    id: str
    tenant: str
    scopes: frozenset[str]
    expires_at: int

    @property
    def own_tenant(self) -> str:
        """The tenant of the key; "" if it is one for every tenant."""
        return "" if self.tenant == EVERY_TENANT else self.tenant


def new_key() -> tuple[str, str]:
    """Return the id of a new key, and the key."""
    key_id = "".join(secrets.choice(_ID_LETTERS) for _ in range(12))
    return key_id, f"ls_{key_id}_{secrets.token_urlsafe(32)}"


def is_key(text: bytes) -> bool:
    """Return whether ``text`` has the form of a key."""
    return _FORM.fullmatch(text) is not None


def id_of(key: str) -> str:
    """Return the id of a key.

    Raises:
        KeyInvalidError: the text has not the form of a key; the message does not contain it.

    """
    if not is_key(key.encode(errors="replace")):
        raise KeyInvalidError("this is not an API key: a key is ls_, 12 characters, _ and 43 characters")
    return key[3:15]


def digest_of(key: bytes) -> bytes:
    """Return what is stored of a key: its SHA-256. A key has 256 random bits, so no salt and no slow hash is needed."""
    return sha256(key).digest()


def check_permissions(tenant: str, scopes: Iterable[str]) -> None:
    """Check what a new key is to permit.

    Raises:
        KeyInvalidError: a scope does not exist, no scope is named, or the tenant is not a name or ``*``, which only
            keys with the scope admin or pipeline may have.

    """
    chosen = set(scopes)
    every = "; ".join(f"{name} ({meaning})" for name, meaning in SCOPES.items())
    if unknown := sorted(chosen - SCOPES.keys()):
        raise KeyInvalidError(f"no such scope: {', '.join(unknown)}. The scopes are: {every}")
    if not chosen:
        raise KeyInvalidError(f"a key needs at least one scope of: {every}")
    if tenant == EVERY_TENANT:
        if not chosen & _FOR_EVERY_TENANT:
            raise KeyInvalidError("only a key with the scope admin or pipeline may be one for every tenant (*)")
    elif not _TENANT.fullmatch(tenant):
        raise KeyInvalidError(
            f"{tenant!r} is not a tenant: lower-case letters, digits, _ and -, at most 63; * for every tenant"
        )
