"""Ask the providers in their order until one knows the lead.

Guarantees: a question is asked once at a time in this process, and not again while its answer is kept; an answer that
could not be kept yet (Postgres away) is held in memory, not paid for again. All calls about one lead together take at
most ``deadline_s`` seconds; waiting for a connection or for room in a rate limit does not count, it is back-pressure.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infra.outcomes import Reason
from streams.enrichment.cache import AnswerCache, CachedAnswer, Lookup
from streams.enrichment.providers import Answer, Found, LookupFailed, NotFound, Provider, ProviderConfig, Question

_BACKOFF_S = 0.1


@dataclass(frozen=True, slots=True)
class Result:
    """What came of it: the ``provider`` of a good answer (else the last one asked), and when it was fetched."""

    answer: Answer
    provider: str = ""
    fetched_at: int = 0


class _Budget:
    """Seconds that are left for calls."""

    def __init__(self, seconds: float) -> None:
        self.left = seconds


class Waterfall:
    """Asks ``providers``, best first; ``clock`` gives seconds."""

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
        self._room = {provider.name: asyncio.Semaphore(provider.config.connections) for provider in providers}
        self._asking: dict[tuple[str, bytes], asyncio.Task[CachedAnswer | LookupFailed]] = {}
        self._unkept: dict[tuple[str, bytes], Found | NotFound] = {}

    async def enrich(self, tenant: str, lead: Mapping[str, Any]) -> Result | None:
        """Return what the providers say about ``lead`` (fields of lead.avsc); None when there is nothing to ask by.

        A failure counts more than a "not found" of another provider: asked again later, it may be found.

        Raises:
            DependencyAway: the kept answers cannot be read or written now.

        """
        budget = _Budget(self._deadline_s)
        result: Result | None = None
        for provider in self._providers:
            question = provider.question(lead)
            if not question:
                continue
            asked = Lookup(provider.name, tenant, lead["lead_id"], question)
            kept = await self._answers.get(asked) or await self._ask_once(provider, asked, budget)
            if isinstance(kept, LookupFailed):
                result = Result(kept, provider.name)
            elif isinstance(kept.answer, Found):
                return Result(kept.answer, provider.name, kept.fetched_at)
            else:
                result = result or Result(kept.answer, provider.name, kept.fetched_at)
        return result

    async def _ask_once(self, provider: Provider, asked: Lookup, budget: _Budget) -> CachedAnswer | LookupFailed:
        """Join the same question where it is being asked now."""
        name = (asked.provider, asked.key)
        task = self._asking.get(name)
        if task is None:
            task = self._asking[name] = asyncio.create_task(self._ask_and_keep(provider, asked, budget))
            task.add_done_callback(lambda _: self._asking.pop(name, None))
        return await asyncio.shield(task)

    async def _ask_and_keep(self, provider: Provider, asked: Lookup, budget: _Budget) -> CachedAnswer | LookupFailed:
        name = (asked.provider, asked.key)
        answer = self._unkept.get(name) or await self._ask(provider, asked.question, budget)
        if isinstance(answer, LookupFailed):
            return answer
        self._unkept[name] = answer
        kept = await self._answers.put(asked, answer, _days(provider.config, answer))
        del self._unkept[name]
        return kept

    async def _ask(self, provider: Provider, question: Question, budget: _Budget) -> Answer:
        wait = _BACKOFF_S
        while True:
            # Room first: a crowd waiting inside the HTTP client for a connection costs it more than the calls do.
            async with self._room[provider.name]:
                await provider.wait_for_rate_limit()
                began = self._clock()
                try:
                    async with asyncio.timeout(max(budget.left, 0)):
                        answer = await provider.ask(question)
                except TimeoutError:
                    answer = LookupFailed(Reason.TIMEOUT, retryable=True)
                budget.left -= self._clock() - began
            pause = wait * random.uniform(0.5, 1.5)  # noqa: S311 - jitter
            if not isinstance(answer, LookupFailed) or not answer.retryable or budget.left <= pause:
                return answer
            await self._sleep(pause)
            budget.left -= pause
            wait *= 2


def _days(config: ProviderConfig, answer: Found | NotFound) -> float:
    return config.found_days if isinstance(answer, Found) else config.not_found_days
