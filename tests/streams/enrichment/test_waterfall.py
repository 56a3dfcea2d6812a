"""The waterfall with the real connector and its simulator, and with scripted providers."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra import http
from infra.errors import DependencyUnavailable
from infra.outcomes import Reason
from simulators import pdl as simulator
from streams.enrichment.cache import CachedResult, Lookup
from streams.enrichment.providers import Found, LookupFailed, LookupResult, NotFound, ProviderConfig, Query, pdl
from streams.enrichment.waterfall import Waterfall

LEAD_ID = str(uuid.uuid4())
DOWN = LookupFailed(Reason.UNAVAILABLE, retryable=True)
KNOWN = next(f"lead{n}@example.com" for n in range(99) if (simulator.person(f"email:lead{n}@example.com")))
UNKNOWN = next(f"lead{n}@example.com" for n in range(99) if simulator.person(f"email:lead{n}@example.com") is None)


class Memory:
    """A result cache in memory; the one in Postgres is tested in test_requests.py."""

    def __init__(self) -> None:
        self.cached: dict[tuple[str, bytes], CachedResult] = {}
        self.failures = 0

    async def get(self, lookup: Lookup) -> CachedResult | None:
        return self.cached.get((lookup.provider, lookup.key))

    async def put(self, lookup: Lookup, result: Found | NotFound, days: float) -> CachedResult:
        assert days > 0
        if self.failures:
            self.failures -= 1
            raise DependencyUnavailable("Postgres", "connection refused")
        return self.cached.setdefault((lookup.provider, lookup.key), CachedResult(result, 1_770_000_000_000_000))


class Scripted:
    """A provider that returns ``results`` in order, then always the last one."""

    def __init__(
        self, name: str, *results: LookupResult, rank: int = 100, slow_s: float = 0, clock: Any = None
    ) -> None:
        self.name = name
        self.config = ProviderConfig.model_validate({"base_url": "http://provider", "rank": rank})
        self.calls = 0
        self._results = results
        self._slow_s = slow_s
        self._clock = clock

    def query(self, lead: Mapping[str, Any]) -> Query:
        return {"email": lead["email"]} if lead.get("email") else {}

    async def wait_for_rate_limit(self) -> None:
        return

    async def look_up(self, query: Query) -> LookupResult:
        assert query
        self.calls += 1
        if self._clock is not None:
            self._clock.now += self._slow_s
        await asyncio.sleep(0)
        return self._results[min(self.calls, len(self._results)) - 1]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


def lead(email: str = "a@example.com") -> dict[str, Any]:
    return {"lead_id": LEAD_ID, "email": email}


def waterfall(*providers: Any, results: Memory | None = None, clock: Clock | None = None) -> Waterfall:
    clock = clock or Clock()
    return Waterfall(
        providers, results or Memory(), deadline_s=3, clock=clock, sleep=clock.sleep, now=lambda: int(clock.now * 1e6)
    )


@pytest.fixture
async def real(tmp_path: Path) -> AsyncIterator[tuple[pdl.PeopleDataLabs, Callable[..., Any]]]:
    app = simulator.app(tmp_path)
    async with http.client("http://pdl", transport=httpx.ASGITransport(app=app)) as client:

        async def control(what: str, body: Any = None) -> dict[str, int]:
            result = await client.request("GET" if body is None else "POST", f"/_simulator/{what}", json=body)
            return result.json() if result.content else {}

        yield (
            pdl.connect(
                pdl.Config.model_validate({"api_key": "test", "base_url": "http://pdl", "min_likelihood": 1}), client
            ),
            control,
        )


async def test_providers_after_the_first_with_data_are_not_called() -> None:
    first, second = Scripted("first", Found({"title": "CTO"}), rank=1), Scripted("second", Found({}), rank=2)
    enrichment = await waterfall(second, first).enrich("acme", lead())
    assert enrichment is not None
    assert (enrichment.provider, enrichment.result) == ("first", Found({"title": "CTO"}))
    assert second.calls == 0


async def test_a_provider_that_finds_nothing_or_fails_is_followed_by_the_next() -> None:
    down, empty, good = Scripted("a", DOWN), Scripted("b", NotFound()), Scripted("c", Found({"title": "CTO"}))
    enrichment = await waterfall(down, empty, good).enrich("acme", lead())
    assert enrichment is not None
    assert enrichment.provider == "c"


async def test_a_failure_takes_precedence_over_not_found_of_another_provider() -> None:
    for order in ((1, 2), (2, 1)):
        down, empty = Scripted("a", DOWN, rank=order[0]), Scripted("b", NotFound(), rank=order[1])
        enrichment = await waterfall(down, empty).enrich("acme", lead())
        assert enrichment is not None
        assert enrichment.result == DOWN


async def test_a_lead_without_a_value_to_look_up_has_no_result() -> None:
    provider = Scripted("a", Found({}))
    assert await waterfall(provider).enrich("acme", lead("")) is None
    assert await waterfall().enrich("acme", lead()) is None
    assert provider.calls == 0


async def test_a_retryable_failure_is_retried() -> None:
    provider = Scripted("a", DOWN, DOWN, Found({"title": "CTO"}))
    enrichment = await waterfall(provider).enrich("acme", lead())
    assert enrichment is not None
    assert isinstance(enrichment.result, Found)


async def test_all_calls_about_a_lead_end_by_the_deadline() -> None:
    clock = Clock()
    slow = [Scripted(name, DOWN, slow_s=0.5, clock=clock) for name in "abc"]
    enrichment = await waterfall(*slow, clock=clock).enrich("acme", lead())
    assert enrichment is not None
    assert isinstance(enrichment.result, LookupFailed)
    assert clock.now <= 3 + 3 * 0.5, "each provider gets at most one last call"


async def test_a_failure_that_is_not_retryable_is_not_retried() -> None:
    provider = Scripted("a", LookupFailed(Reason.QUOTA))
    enrichment = await waterfall(provider).enrich("acme", lead())
    assert enrichment is not None
    assert enrichment.result == LookupFailed(Reason.QUOTA)
    assert provider.calls == 1


async def test_a_result_is_paid_for_once(real: Any) -> None:
    provider, control = real
    tested = waterfall(provider)
    for email in (KNOWN, UNKNOWN):
        results = await asyncio.gather(*(tested.enrich("acme", lead(email)) for _ in range(5)))
        results += [await tested.enrich("acme", lead(email))]
        assert len({enrichment.result.__class__ for enrichment in results if enrichment is not None}) == 1
    assert (await control("stats"))["calls"] == 2
    await tested.enrich("other-tenant", lead(KNOWN))
    assert (await control("stats"))["calls"] == 3


async def test_a_result_that_could_not_be_cached_is_not_paid_for_again(real: Any) -> None:
    provider, control = real
    results = Memory()
    results.failures = 2
    tested = waterfall(provider, results=results)
    for _ in range(2):
        with pytest.raises(DependencyUnavailable):
            await tested.enrich("acme", lead(KNOWN))
    enrichment = await tested.enrich("acme", lead(KNOWN))
    assert enrichment is not None
    assert isinstance(enrichment.result, Found)
    assert (await control("stats"))["credits_spent"] == 1


@pytest.mark.parametrize(
    ("what", "body", "reason"),
    [
        ("faults", {"status": 503}, Reason.UNAVAILABLE),
        ("faults", {"junk": True}, Reason.UNAVAILABLE),
        ("limits", {"per_minute": 0}, Reason.RATE_LIMITED),
        ("limits", {"credits": 0}, Reason.QUOTA),
    ],
)
async def test_a_failure_at_the_provider_is_a_reason_and_no_exception(
    real: Any, what: str, body: Any, reason: Reason
) -> None:
    provider, control = real
    await control(what, body)
    enrichment = await waterfall(provider).enrich("acme", lead(KNOWN))
    assert enrichment is not None
    assert isinstance(enrichment.result, LookupFailed)
    assert enrichment.result.reason == reason
    await control("faults", {})
    await control("limits", {"per_minute": 1000, "credits": 10})
    again = await waterfall(provider).enrich("acme", lead(KNOWN))
    assert again is not None
    assert isinstance(again.result, Found), "a failure is never cached"
