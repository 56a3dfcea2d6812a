"""The budget of one tenant: what its lookups may cost in a calendar day or month (UTC), over all providers.

Guarantees: a call is made only after one credit was reserved for it, over all processes; so the budget is exceeded by
at most what single calls cost above one credit. The credit of a call that was free is returned. A cached result costs
nothing.
Crash: the reserved credit of a call stays spent.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any

import asyncpg

from infra.clock import Clock, now_us, to_datetime
from infra.outcomes import Reason
from infra.postgres.pool import connection, transaction
from infra.tenants import Budget
from streams.enrichment.providers import Found, LookupFailed, LookupResult, NotFound, Provider, ProviderConfig, Query

_RESERVED = 1.0  # credits
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('enrichment_spend ' || $1, 0))"
_RESERVE = """
INSERT INTO enrichment_spend AS spend (tenant, day, credits)
SELECT $1, $2, $5
WHERE (SELECT COALESCE(sum(credits), 0) FROM enrichment_spend WHERE tenant = $1 AND day >= $3) + $5 <= $4
ON CONFLICT (tenant, day) DO UPDATE SET credits = spend.credits + excluded.credits
RETURNING 1
"""
_ADJUST = "UPDATE enrichment_spend SET credits = greatest(0, credits + $3) WHERE tenant = $1 AND day = $2"


class BudgetedProvider:
    """A :class:`streams.enrichment.providers.Provider` that makes a call only within the budget of ``tenant``.

    Without credits the result is a failure of the account with the reason ``quota``, which opens the circuit breaker.
    """

    def __init__(
        self, provider: Provider, pool: asyncpg.Pool, tenant: str, budget: Budget, clock: Clock = now_us
    ) -> None:
        self._provider = provider
        self._pool = pool
        self._tenant = tenant
        self._budget = budget
        self._clock = clock

    @property
    def name(self) -> str:
        """The provider's ``NAME``."""
        return self._provider.name

    @property
    def config(self) -> ProviderConfig:
        """The provider's settings."""
        return self._provider.config

    def query(self, lead: Mapping[str, Any]) -> Query:
        """Return the values to look up."""
        return self._provider.query(lead)

    async def wait_for_rate_limit(self) -> None:
        """Wait until the rate limit allows one call, and count the call."""
        await self._provider.wait_for_rate_limit()

    async def look_up(self, query: Query) -> LookupResult:
        """Make one call if there is a credit for it; return its result.

        Raises:
            DependencyUnavailable: Postgres is unavailable.

        """
        day = to_datetime(self._clock()).date()
        if not await self._reserve(day):
            return LookupFailed(Reason.QUOTA, detail=f"the tenant's budget of this {self._budget.per} is spent")
        result = await self._provider.look_up(query)
        spent = _cost(result) - _RESERVED
        if spent:
            async with connection(self._pool) as postgres:
                await postgres.execute(_ADJUST, self._tenant, day, spent)
        return result

    async def _reserve(self, day: date) -> bool:
        first = day.replace(day=1) if self._budget.per == "month" else day
        async with transaction(self._pool) as postgres:
            await postgres.execute(_LOCK, self._tenant)  # two processes must not reserve the last credit
            values = (self._tenant, day, first, float(self._budget.credits), _RESERVED)
            return await postgres.fetchval(_RESERVE, *values) is not None


def _cost(result: LookupResult) -> float:
    if isinstance(result, Found | NotFound):
        return result.cost
    return _RESERVED if result.reason is Reason.TIMEOUT else 0  # it is unknown whether a call without response is paid
