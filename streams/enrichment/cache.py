"""Caches the results of providers in Postgres, so that a lookup is paid for once until its result expires."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import asyncpg
import orjson

from infra.postgres.pool import connection
from streams.enrichment.providers import Found, NotFound, Query

_GET = """
SELECT result, likelihood, cost, (extract(epoch FROM fetched_at) * 1000000)::bigint AS fetched_at
FROM enrichment_results WHERE provider = $1 AND key = $2 AND expires_at > now()
"""
# A result that has not expired is never replaced: a lead event with its values may already be published.
_PUT = """
INSERT INTO enrichment_results AS cached
    (provider, key, tenant, lead_id, result, likelihood, cost, fetched_at, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, now(), now() + $8)
ON CONFLICT (provider, key) DO UPDATE SET
    tenant = excluded.tenant, lead_id = excluded.lead_id, result = excluded.result, likelihood = excluded.likelihood,
    cost = excluded.cost, fetched_at = excluded.fetched_at, expires_at = excluded.expires_at
WHERE cached.expires_at <= now()
"""


@dataclass(frozen=True, slots=True)
class CachedResult:
    """A result and the time when it was fetched, in microseconds since 1970."""

    result: Found | NotFound
    fetched_at: int


@dataclass(frozen=True, slots=True)
class Lookup:
    """The lookup of one lead at one provider."""

    provider: str
    tenant: str
    lead_id: str
    query: Query

    @property
    def key(self) -> bytes:
        """The cache key: SHA-256 of tenant and query. It contains no personal data; tenants share no results."""
        words = orjson.dumps([self.tenant, dict(self.query)], option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(words).digest()


class ResultCache(Protocol):
    """Stores results until they expire. Both methods raise DependencyUnavailable when the store is unavailable."""

    async def get(self, lookup: Lookup) -> CachedResult | None:
        """Return the cached result, or None if there is none or it has expired."""
        ...

    async def put(self, lookup: Lookup, result: Found | NotFound, days: float) -> CachedResult:
        """Store ``result`` for ``days`` unless a result is cached; return the cached one."""
        ...


class PostgresResultCache:
    """A :class:`ResultCache` in the table ``enrichment_results``."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def get(self, lookup: Lookup) -> CachedResult | None:
        """See :class:`ResultCache`."""
        async with connection(self._pool) as database:
            row = await database.fetchrow(_GET, lookup.provider, lookup.key)
        return None if row is None else _cached_result(row)

    async def put(self, lookup: Lookup, result: Found | NotFound, days: float) -> CachedResult:
        """See :class:`ResultCache`."""
        values = (
            lookup.provider,
            lookup.key,
            lookup.tenant,
            uuid.UUID(lookup.lead_id),
            _json(result.fields) if isinstance(result, Found) else None,
            result.likelihood if isinstance(result, Found) else None,
            result.cost,
            timedelta(days=days),
        )
        async with connection(self._pool) as database:
            await database.execute(_PUT, *values)
            row = await database.fetchrow(_GET, lookup.provider, lookup.key)
        if row is None:
            raise RuntimeError(f"the result of {lookup.provider} expired while it was stored: days={days}")
        return _cached_result(row)


def _json(fields: Mapping[str, Any]) -> str:
    """Return ``fields`` as JSON without NUL characters, which jsonb cannot hold."""
    return orjson.dumps({name: _without_nul(value) for name, value in fields.items()}).decode()


def _without_nul(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nul(each) for key, each in value.items()}
    return value.replace("\0", "") if isinstance(value, str) else value


def _cached_result(row: Mapping[str, object]) -> CachedResult:
    fetched_at, cost, result = row["fetched_at"], row["cost"], row["result"]
    assert isinstance(fetched_at, int)  # noqa: S101 - the types of the columns, for the type checker
    assert isinstance(cost, float)  # noqa: S101
    if not isinstance(result, str):
        return CachedResult(NotFound(cost), fetched_at)
    likelihood = row["likelihood"]
    return CachedResult(
        Found(orjson.loads(result), likelihood if isinstance(likelihood, float) else None, cost), fetched_at
    )
