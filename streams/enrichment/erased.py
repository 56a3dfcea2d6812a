"""Whether a lead was erased since a question about it was asked: then the answer is neither published nor kept."""

from __future__ import annotations

from typing import Protocol
from uuid import UUID

import asyncpg

from infra.clock import now_us
from infra.postgres.pool import connection

# An erasure that was decided after the question, of the lead or of the lead that it was merged into.
_ERASED = """
SELECT EXISTS (
    SELECT FROM erasures WHERE decided_at >= $2 AND lead_id IN (
        SELECT $1::uuid UNION ALL SELECT lead_id FROM lead_aliases WHERE alias_id = $1::uuid
    )
)
"""
_FORGET = "DELETE FROM enrichment_results WHERE lead_id = $1::uuid"


class Erasures(Protocol):
    """Knows the erased leads. Raises DependencyUnavailable when the store is unavailable."""

    async def erased(self, lead_id: str, asked_at: int) -> bool:
        """Return whether the lead was erased at or after ``asked_at`` (microseconds since 1970).

        If so, the cached results about it are deleted.
        """
        ...


class PostgresErasures:
    """:class:`Erasures` in the table ``erasures``, which intake writes."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def erased(self, lead_id: str, asked_at: int) -> bool:
        """See :class:`Erasures`. A lead whose id is not a UUID is unknown, so it was not erased."""
        try:
            UUID(lead_id)
        except ValueError:
            return False
        asked_at = min(max(asked_at, 0), now_us())  # a record can name any time
        async with connection(self._pool) as database:
            found = bool(await database.fetchval(_ERASED, lead_id, asked_at))
            if found:
                await database.execute(_FORGET, lead_id)
        return found
