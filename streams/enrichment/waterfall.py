"""Looks a lead up at the providers, one after the other, until one of them has data.

Guarantees:

- While a lookup is in progress or its result is cached, this process does not repeat it. A result that could not be
  cached, because Postgres is unavailable, stays in memory. It is cached at the next attempt and not paid for twice.
- A provider whose circuit breaker is open is not called, and no request waits for it: the next provider follows.
- All calls about one lead together take at most ``deadline_s`` seconds. Time spent waiting for a connection or for the
  rate limit does not count: it is back-pressure.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from infra.clock import Clock, now_us
from infra.outcomes import Reason
from infra.retry import Backoff
from streams.enrichment import STAGE
from streams.enrichment.breaker import Breaker
from streams.enrichment.cache import CachedResult, Lookup, ResultCache
from streams.enrichment.providers import Found, LookupFailed, LookupResult, NotFound, Provider, ProviderConfig, Query

_BACKOFF = Backoff(0.1, 3.0)
_ATTEMPTS = 3  # of one request at one provider; below breaker_failures, so that a single request opens no breaker
_READY_S = 0.2  # interval of looking whether a breaker admits a call


@dataclass(frozen=True, slots=True)
class Enrichment:
    """The result of looking a lead up, and its provider. ``fetched_at``: microseconds since 1970; 0 after a failure."""

    result: LookupResult
    provider: str = ""
    fetched_at: int = 0


class _Budget:
    """The seconds that remain for calls about one lead."""

    def __init__(self, seconds: float) -> None:
        self.left = seconds


class Lookups(Protocol):
    """Looks leads up: a :class:`Waterfall`, or those of all tenants."""

    async def enrich(self, tenant: str, lead: Mapping[str, Any]) -> Enrichment | None:
        """See :meth:`Waterfall.enrich`."""
        ...

    def closed_after_s(self, tenant: str) -> float:
        """See :meth:`Waterfall.closed_after_s`."""
        ...


class Waterfall:
    """Looks leads up at ``providers``, in the order of their rank.

    Args:
        providers: connected providers.
        results: the cache of results.
        deadline_s: seconds for all calls about one lead.
        clock: returns seconds; only differences count.
        sleep: waits for a number of seconds.
        now: the time of the circuit breakers.
        account: of a tenant; it is shown in the metrics of the circuit breakers.

    """

    def __init__(
        self,
        providers: Sequence[Provider],
        results: ResultCache,
        *,
        deadline_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        now: Clock = now_us,
        account: str = "",
    ) -> None:
        self._providers = sorted(providers, key=lambda provider: (provider.config.rank, provider.name))
        self._results = results
        self._deadline_s = deadline_s
        self._clock = clock
        self._sleep = sleep
        self._now = now
        self._breakers = {
            provider.name: Breaker(
                STAGE, f"{provider.name}:{account}" if account else provider.name, provider.config, now
            )
            for provider in providers
        }
        self._connections = {provider.name: asyncio.Semaphore(provider.config.connections) for provider in providers}
        self._running: dict[tuple[str, bytes], asyncio.Task[CachedResult | LookupFailed]] = {}
        self._uncached: dict[tuple[str, bytes], Found | NotFound] = {}

    async def enrich(self, tenant: str, lead: Mapping[str, Any]) -> Enrichment | None:
        """Look ``lead`` up at the providers until one of them has data.

        Args:
            tenant: of the lead.
            lead: every field of lead.avsc.

        Returns:
            The first Found. Without one: a failure that may be over later, preferably of a call that was made;
            otherwise a refusal; otherwise the first NotFound. None if the lead has no value that a provider can look
            up.

        Raises:
            DependencyUnavailable: the cache is unavailable.

        """
        budget = _Budget(self._deadline_s)
        enrichment: Enrichment | None = None
        for provider in self._providers:
            query = provider.query(lead)
            if not query:
                continue
            lookup = Lookup(provider.name, tenant, lead["lead_id"], query)
            cached = await self._results.get(lookup) or await self._look_up_once(provider, lookup, budget)
            if isinstance(cached, LookupFailed):
                this = Enrichment(cached, provider.name)
            elif isinstance(cached.result, Found):
                return Enrichment(cached.result, provider.name, cached.fetched_at)
            else:
                this = Enrichment(cached.result, provider.name, cached.fetched_at)
            if enrichment is None or _weight(this.result) > _weight(enrichment.result):
                enrichment = this
        return enrichment

    @property
    def admits(self) -> bool:
        """Whether the breaker of at least one provider admits a call, or there is no provider."""
        return not self._breakers or any(breaker.admits for breaker in self._breakers.values())

    def closed_after_s(self, tenant: str = "") -> float:  # noqa: ARG002 - the breakers are of one account
        """Return the seconds until every breaker admits a call, as far as is known; 0 if all are closed."""
        opened = [breaker.refusal().until for breaker in self._breakers.values() if not breaker.closed]
        return max(0.0, (max(opened) - self._now()) / 1e6) if opened else 0.0

    async def ready(self) -> None:
        """Wait until the breaker of at least one provider admits a call; return at once without providers."""
        while not self.admits:  # noqa: ASYNC110
            await asyncio.sleep(_READY_S)  # the end of a breaker's time is no event

    async def _look_up_once(self, provider: Provider, lookup: Lookup, budget: _Budget) -> CachedResult | LookupFailed:
        """Look up, or wait for the result if the same lookup is in progress for another request."""
        key = (lookup.provider, lookup.key)
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(self._look_up_and_cache(provider, lookup, budget))
            task.add_done_callback(lambda _: self._running.pop(key, None))
        return await asyncio.shield(task)

    async def _look_up_and_cache(
        self, provider: Provider, lookup: Lookup, budget: _Budget
    ) -> CachedResult | LookupFailed:
        key = (lookup.provider, lookup.key)
        result = self._uncached.get(key) or await self._look_up(provider, lookup.query, budget)
        if isinstance(result, LookupFailed):
            return result
        self._uncached[key] = result
        cached = await self._results.put(lookup, result, _days(provider.config, result))
        del self._uncached[key]
        return cached

    async def _look_up(self, provider: Provider, query: Query, budget: _Budget) -> LookupResult:
        breaker = self._breakers[provider.name]
        attempt = 0
        while True:
            attempt += 1
            result = await self._call(provider, breaker, query, budget)
            pause = _BACKOFF.seconds(attempt)
            again = isinstance(result, LookupFailed) and result.retryable and breaker.closed
            if not again or attempt == _ATTEMPTS or budget.left <= pause:
                return result
            await self._sleep(pause)
            budget.left -= pause

    async def _call(self, provider: Provider, breaker: Breaker, query: Query, budget: _Budget) -> LookupResult:
        if not breaker.admits:
            return breaker.refusal()
        # Limit calls here: many requests that wait inside the HTTP client for a connection cost it more CPU than the
        # calls themselves.
        async with self._connections[provider.name]:
            if breaker.admits:  # it may have opened in the meantime
                await provider.wait_for_rate_limit()
            if budget.left <= 0:
                return LookupFailed(Reason.TIMEOUT, retryable=True)
            call = breaker.begin()
            if call is None:
                return breaker.refusal()
            result: LookupResult = LookupFailed(Reason.TIMEOUT, retryable=True)
            started_at = self._clock()
            try:
                async with asyncio.timeout(budget.left):
                    result = await provider.look_up(query)
            except TimeoutError:
                pass
            finally:
                breaker.end(call, result)
            budget.left -= self._clock() - started_at
            return result


def _weight(result: LookupResult) -> int:
    """Return the precedence of a result over those of other providers, without one that has data."""
    if not isinstance(result, LookupFailed):
        return 0
    return 1 if result.refused else 2 if result.until else 3


def _days(config: ProviderConfig, result: Found | NotFound) -> float:
    return config.found_days if isinstance(result, Found) else config.not_found_days
