"""What providers answered, in Postgres: a question that was answered is not paid for again until the answer expires."""

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
# The answer that is there and not expired stays: whoever was first has told the world about it.
_PUT = """
INSERT INTO enrichment_results AS kept
    (provider, key, tenant, lead_id, result, likelihood, cost, fetched_at, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, now(), now() + $8)
ON CONFLICT (provider, key) DO UPDATE SET
    tenant = excluded.tenant, lead_id = excluded.lead_id, result = excluded.result, likelihood = excluded.likelihood,
    cost = excluded.cost, fetched_at = excluded.fetched_at, expires_at = excluded.expires_at
WHERE kept.expires_at <= now()
"""


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """An answer and when it was fetched, in microseconds since 1970."""

    answer: Found | NotFound
    fetched_at: int


@dataclass(frozen=True, slots=True)
class Lookup:
    """A question about a lead, to a provider."""

    provider: str
    tenant: str
    lead_id: str
    question: Question

    @property
    def key(self) -> bytes:
        """SHA-256 of tenant and question: no personal data in the key, and no tenant pays for another."""
        words = orjson.dumps([self.tenant, dict(self.question)], option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(words).digest()


class AnswerCache(Protocol):
    """Where answers are kept. Both raise DependencyAway."""

    async def get(self, asked: Lookup) -> CachedAnswer | None:
        """Return the answer that is kept and not expired."""
        ...

    async def put(self, asked: Lookup, answer: Found | NotFound, days: float) -> CachedAnswer:
        """Keep ``answer`` for ``days``; return what is kept now, which may be somebody else's earlier answer."""
        ...


class PostgresAnswerCache:
    """The table ``enrichment_results``."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def get(self, asked: Lookup) -> CachedAnswer | None:
        """See :class:`AnswerCache`."""
        async with connection(self._pool) as database:
            row = await database.fetchrow(_GET, asked.provider, asked.key)
        return None if row is None else _kept(row)

    async def put(self, asked: Lookup, answer: Found | NotFound, days: float) -> CachedAnswer:
        """See :class:`AnswerCache`."""
        found = isinstance(answer, Found)
        values = (
            asked.provider,
            asked.key,
            asked.tenant,
            uuid.UUID(asked.lead_id),
            orjson.dumps(dict(answer.fields)).decode() if isinstance(answer, Found) else None,
            answer.likelihood if isinstance(answer, Found) else None,
            answer.cost,
            timedelta(days=days),
        )
        async with connection(self._pool) as database:
            await database.execute(_PUT, *values)
            row = await database.fetchrow(_GET, asked.provider, asked.key)
        if row is None:
            raise RuntimeError(f"an answer that was {'found' if found else 'not found'} is gone at once: days={days}")
        return _kept(row)


def _kept(row: Mapping[str, object]) -> CachedAnswer:
    fetched_at, cost, result = row["fetched_at"], row["cost"], row["result"]
    assert isinstance(fetched_at, int)  # noqa: S101 - what the columns are, for the type checker
    assert isinstance(cost, float)  # noqa: S101
    if not isinstance(result, str):
        return CachedAnswer(NotFound(cost), fetched_at)
    likelihood = row["likelihood"]
    return CachedAnswer(
        Found(orjson.loads(result), likelihood if isinstance(likelihood, float) else None, cost), fetched_at
    )
