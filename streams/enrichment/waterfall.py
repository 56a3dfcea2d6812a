"""Asks the providers about a lead, one after the other, until one of them has data.

Guarantees:

- While a question is asked or its answer is cached, this process does not ask it again. An answer that could not be
  cached, because Postgres is unavailable, stays in memory: it is cached at the next attempt and not paid for twice.
- All calls about one lead together take at most ``deadline_s`` seconds. Waiting for a connection or for the rate limit
  does not count: it is back-pressure.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infra.outcomes import Reason
from infra.retry import Backoff
from streams.enrichment.cache import AnswerCache, CachedAnswer, Lookup
from streams.enrichment.providers import Answer, Found, LookupFailed, NotFound, Provider, ProviderConfig, Question

_BACKOFF = Backoff(0.1, 3.0)


@dataclass(frozen=True, slots=True)
class Result:
    """The answer about a lead and the provider that gave it; ``fetched_at`` in microseconds since 1970, or 0."""

    answer: Answer
    provider: str = ""
    fetched_at: int = 0


class _Budget:
    """The seconds that remain for calls about one lead."""

    def __init__(self, seconds: float) -> None:
        self.left = seconds


class Waterfall:
    """Asks ``providers`` in the order of their rank.

    Args:
        providers: connected providers.
        answers: the cache of answers.
        deadline_s: seconds for all calls about one lead.
        clock: returns seconds; only differences count.
        sleep: waits for a number of seconds.

    """

    def __init__(
        self,
        providers: Sequence[Provider],
        answers: AnswerCache,
        *,
        deadline_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._providers = sorted(providers, key=lambda provider: (provider.config.rank, provider.name))
        self._answers = answers
        self._deadline_s = deadline_s
        self._clock = clock
        self._sleep = sleep
        self._connections = {provider.name: asyncio.Semaphore(provider.config.connections) for provider in providers}
        self._running: dict[tuple[str, bytes], asyncio.Task[CachedAnswer | LookupFailed]] = {}
        self._uncached: dict[tuple[str, bytes], Found | NotFound] = {}

    async def enrich(self, tenant: str, lead: Mapping[str, Any]) -> Result | None:
        """Ask the providers about ``lead`` until one of them has data.

        Args:
            tenant: of the lead.
            lead: every field of lead.avsc.

        Returns:
            The first Found. Without one: the last failure, since a later request may succeed; otherwise the first
            NotFound. None if the lead has no value that a provider can look up.

        Raises:
            DependencyUnavailable: the cache is unavailable.

        """
        budget = _Budget(self._deadline_s)
        result: Result | None = None
        for provider in self._providers:
            question = provider.question(lead)
            if not question:
                continue
            lookup = Lookup(provider.name, tenant, lead["lead_id"], question)
            cached = await self._answers.get(lookup) or await self._ask_once(provider, lookup, budget)
            if isinstance(cached, LookupFailed):
                result = Result(cached, provider.name)
            elif isinstance(cached.answer, Found):
                return Result(cached.answer, provider.name, cached.fetched_at)
            else:
                result = result or Result(cached.answer, provider.name, cached.fetched_at)
        return result

    async def _ask_once(self, provider: Provider, lookup: Lookup, budget: _Budget) -> CachedAnswer | LookupFailed:
        """Ask a question, or wait for the answer if another request is asking it now."""
        key = (lookup.provider, lookup.key)
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(self._ask_and_cache(provider, lookup, budget))
            task.add_done_callback(lambda _: self._running.pop(key, None))
        return await asyncio.shield(task)

    async def _ask_and_cache(self, provider: Provider, lookup: Lookup, budget: _Budget) -> CachedAnswer | LookupFailed:
        key = (lookup.provider, lookup.key)
        answer = self._uncached.get(key) or await self._ask(provider, lookup.question, budget)
        if isinstance(answer, LookupFailed):
            return answer
        self._uncached[key] = answer
        cached = await self._answers.put(lookup, answer, _days(provider.config, answer))
        del self._uncached[key]
        return cached

    async def _ask(self, provider: Provider, question: Question, budget: _Budget) -> Answer:
        attempt = 0
        while True:
            attempt += 1
            # Limit calls here: many requests that wait inside the HTTP client for a connection cost it more CPU than
            # the calls themselves.
            async with self._connections[provider.name]:
                await provider.wait_for_rate_limit()
                started_at = self._clock()
                try:
                    async with asyncio.timeout(max(budget.left, 0)):
                        answer = await provider.ask(question)
                except TimeoutError:
                    answer = LookupFailed(Reason.TIMEOUT, retryable=True)
                budget.left -= self._clock() - started_at
            pause = _BACKOFF.seconds(attempt)
            if not isinstance(answer, LookupFailed) or not answer.retryable or budget.left <= pause:
                return answer
            await self._sleep(pause)
            budget.left -= pause


def _days(config: ProviderConfig, answer: Found | NotFound) -> float:
    return config.found_days if isinstance(answer, Found) else config.not_found_days
