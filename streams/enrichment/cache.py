"""Caches the answers of providers in Postgres, so that no question is paid for again before its answer expires."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

import asyncpg
import orjson

from infra.postgres.pool import connection
from streams.enrichment.providers import Found, NotFound, Question

_GET = """
SELECT result, likelihood, cost, (extract(epoch FROM fetched_at) * 1000000)::bigint AS fetched_at
FROM enrichment_results WHERE provider = $1 AND key = $2 AND expires_at > now()
"""
# An answer that has not expired is never replaced: a lead event with its values may already be published.
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
class CachedAnswer:
    """An answer and the time when it was fetched, in microseconds since 1970."""

    answer: Found | NotFound
    fetched_at: int


@dataclass(frozen=True, slots=True)
class Lookup:
    """A question about one lead to one provider."""

    provider: str
    tenant: str
    lead_id: str
    question: Question

    @property
    def key(self) -> bytes:
        """The cache key: SHA-256 of tenant and question. It contains no personal data; tenants share no answers."""
        words = orjson.dumps([self.tenant, dict(self.question)], option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(words).digest()


class AnswerCache(Protocol):
    """Stores answers until they expire. Both methods raise DependencyUnavailable when the store is unavailable."""

    async def get(self, lookup: Lookup) -> CachedAnswer | None:
        """Return the cached answer, or None if there is none or it has expired."""
        ...

    async def put(self, lookup: Lookup, answer: Found | NotFound, days: float) -> CachedAnswer:
        """Store ``answer`` for ``days`` unless an answer is cached; return the cached one."""
        ...


class PostgresAnswerCache:
    """An :class:`AnswerCache` in the table ``enrichment_results``."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def get(self, lookup: Lookup) -> CachedAnswer | None:
        """See :class:`AnswerCache`."""
        async with connection(self._pool) as database:
            row = await database.fetchrow(_GET, lookup.provider, lookup.key)
        return None if row is None else _cached_answer(row)

    async def put(self, lookup: Lookup, answer: Found | NotFound, days: float) -> CachedAnswer:
        """See :class:`AnswerCache`."""
        values = (
            lookup.provider,
            lookup.key,
            lookup.tenant,
            uuid.UUID(lookup.lead_id),
            orjson.dumps(dict(answer.fields)).decode() if isinstance(answer, Found) else None,
            answer.likelihood if isinstance(answer, Found) else None,
            answer.cost,
            timedelta(days=days),
        )
        async with connection(self._pool) as database:
            await database.execute(_PUT, *values)
            row = await database.fetchrow(_GET, lookup.provider, lookup.key)
        if row is None:
            raise RuntimeError(f"the answer of {lookup.provider} expired while it was stored: days={days}")
        return _cached_answer(row)


def _cached_answer(row: Mapping[str, object]) -> CachedAnswer:
    fetched_at, cost, result = row["fetched_at"], row["cost"], row["result"]
    assert isinstance(fetched_at, int)  # noqa: S101 - the types of the columns, for the type checker
    assert isinstance(cost, float)  # noqa: S101
    if not isinstance(result, str):
        return CachedAnswer(NotFound(cost), fetched_at)
    likelihood = row["likelihood"]
    return CachedAnswer(
        Found(orjson.loads(result), likelihood if isinstance(likelihood, float) else None, cost), fetched_at
    )
