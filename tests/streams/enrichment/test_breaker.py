"""The circuit breaker: how many calls a failing provider gets, and when calls resume."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import REGISTRY

from infra.outcomes import Reason
from streams.enrichment.breaker import Breaker
from streams.enrichment.providers import Found, LookupFailed, LookupResult, NotFound, ProviderConfig
from tests.streams.enrichment.test_waterfall import Clock, Scripted, lead, waterfall

DOWN = LookupFailed(Reason.UNAVAILABLE, retryable=True, detail="status 503")
CONFIG = ProviderConfig.model_validate(
    {"base_url": "http://provider", "breaker_failures": 3, "breaker_s": 10, "breaker_max_s": 40}
)


class Calls:
    """A breaker, and calls through it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.breaker = Breaker("test", "calls", CONFIG, lambda: round(self.clock.now * 1e6))

    def make(self, result: LookupResult) -> bool:
        """Make one call; return whether it was admitted."""
        call = self.breaker.begin()
        if call is not None:
            self.breaker.end(call, result)
        return call is not None

    def wait(self) -> float:
        """Wait until the next probe is admitted; return the seconds."""
        began = self.clock.now
        self.clock.now = self.breaker.refusal().until / 1e6
        return self.clock.now - began


def waiting() -> float | None:
    return REGISTRY.get_sample_value("leadstream_waiting", {"stage": "test", "dependency": "calls"})


def test_consecutive_failures_stop_the_calls_and_an_answered_probe_resumes_them() -> None:
    calls = Calls()
    assert [calls.make(DOWN) for _ in range(10)] == [True] * 3 + [False] * 7
    assert waiting() == 1
    assert 5 <= calls.wait() <= 15
    assert calls.make(NotFound())
    assert calls.breaker.closed
    assert waiting() == 0
    assert [calls.make(DOWN) for _ in range(5)] == [True] * 3 + [False] * 2, "the count starts again"


def test_answers_and_refusals_are_no_failures() -> None:
    calls = Calls()
    for result in (NotFound(), Found({}), LookupFailed(Reason.REJECTED)):
        assert all(calls.make(each) for each in (DOWN, DOWN, result) * 5)
    assert calls.breaker.closed


@pytest.mark.parametrize("reason", [Reason.QUOTA, Reason.UNAUTHORIZED, Reason.MISCONFIGURED])
def test_a_failure_of_the_account_stops_the_calls_at_once(reason: Reason) -> None:
    calls = Calls()
    calls.make(LookupFailed(reason))
    assert not calls.breaker.admits
    assert calls.breaker.refusal().reason is reason


def test_only_one_probe_is_made_at_a_time_and_the_time_without_calls_doubles_up_to_its_maximum() -> None:
    calls = Calls()
    for _ in range(3):
        calls.make(DOWN)
    means = (10, 20, 40, 40, 40)
    for mean in means:
        assert 0.5 * mean <= calls.wait() <= 1.5 * mean
        probe = calls.breaker.begin()
        assert probe is not None
        assert calls.breaker.begin() is None
        assert calls.breaker.refusal().until > calls.clock.now * 1e6, "the others wait for the probe"
        calls.breaker.end(probe, DOWN)
        assert not calls.breaker.admits


def test_a_call_that_began_before_the_breaker_opened_neither_closes_nor_prolongs_it() -> None:
    calls = Calls()
    early = [calls.breaker.begin() for _ in range(4)]
    for call in early[:3]:
        calls.breaker.end(call or 0, DOWN)
    until = calls.breaker.refusal().until
    calls.breaker.end(early[3] or 0, Found({}))
    assert not calls.breaker.closed
    assert calls.breaker.refusal().until == until


async def test_a_provider_that_is_down_gets_few_calls_and_no_request_waits_for_it() -> None:
    clock = Clock()
    provider = Scripted("a", DOWN)
    tested = waterfall(provider, clock=clock)
    results = await asyncio.gather(*(tested.enrich("acme", lead(f"a{n}@example.com")) for n in range(500)))
    failures = [each.result for each in results if each is not None and isinstance(each.result, LookupFailed)]
    assert len(failures) == 500
    assert provider.calls <= provider.config.breaker_failures + provider.config.connections
    assert sum(failure.until > 0 for failure in failures) >= 500 - provider.calls
    before = clock.now
    await tested.enrich("acme", lead("late@example.com"))
    assert clock.now == before, "no time was spent on a provider that is not called"


async def test_the_next_provider_is_asked_while_the_breaker_of_the_first_is_open() -> None:
    down, good = Scripted("a", DOWN, rank=1), Scripted("b", Found({"title": "CTO"}), rank=2)
    tested = waterfall(down, good)
    for n in range(30):
        enrichment = await tested.enrich("acme", lead(f"a{n}@example.com"))
        assert enrichment is not None
        assert enrichment.provider == "b"
    assert down.calls == down.config.breaker_failures
    await asyncio.wait_for(tested.ready(), 5)


async def test_open_requests_are_not_repeated_before_the_breaker_admits_a_probe() -> None:
    clock = Clock()
    tested = waterfall(Scripted("a", DOWN), clock=clock)
    for n in range(2):
        await tested.enrich("acme", lead(f"a{n}@example.com"))
    ready = asyncio.ensure_future(tested.ready())
    await asyncio.sleep(0.5)
    assert not ready.done()
    clock.now += 1000
    await asyncio.wait_for(ready, 5)


async def test_a_provider_that_fails_for_one_lead_only_keeps_its_breaker_closed() -> None:
    failing = Scripted("a", DOWN)
    tested = waterfall(failing)
    await tested.enrich("acme", lead("poison@example.com"))
    assert failing.calls < failing.config.breaker_failures
    assert tested.closed_after_s() == 0


async def test_the_time_until_the_breakers_admit_a_call_is_known() -> None:
    clock = Clock()
    tested = waterfall(Scripted("a", DOWN), clock=clock)
    for n in range(2):
        await tested.enrich("acme", lead(f"a{n}@example.com"))
    assert 15 <= tested.closed_after_s() <= 45
    clock.now += 60
    assert tested.closed_after_s() <= 1
