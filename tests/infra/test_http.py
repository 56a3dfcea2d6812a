"""Retries of HTTP calls, and the rate limit."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra import http
from infra.http import Bucket, Unreachable, send
from infra.outcomes import Reason


async def no_sleep(_: float) -> None:
    return


def responses(*results: int | Exception) -> tuple[httpx.AsyncClient, list[httpx.Request]]:
    left, seen = list(results), []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        result = left.pop(0)
        if isinstance(result, Exception):
            raise result
        return httpx.Response(result)

    return http.client("http://service", transport=httpx.MockTransport(handler)), seen


@pytest.mark.parametrize("failure", [502, 503, 504, httpx.ConnectError("no"), httpx.ReadTimeout("late")])
async def test_temporary_failures_are_retried(failure: int | Exception) -> None:
    client, seen = responses(failure, failure, 200)
    async with client:
        assert (await send(client, "POST", "/x", body={"a": 1}, sleep=no_sleep)).status_code == 200
    assert [r.content for r in seen] == [b'{"a":1}'] * 3


@pytest.mark.parametrize("status", [200, 400, 401, 409, 429, 500])
async def test_other_statuses_are_not_retried(status: int) -> None:
    client, seen = responses(status)
    async with client:
        assert (await send(client, "GET", "/x", sleep=no_sleep)).status_code == status
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("failure", "reason"),
    [(httpx.ConnectError("no"), Reason.UNAVAILABLE), (httpx.ReadTimeout("late"), Reason.TIMEOUT)],
)
async def test_no_response_after_all_attempts(failure: Exception, reason: Reason) -> None:
    client, _ = responses(*[failure] * 3)
    async with client:
        with pytest.raises(Unreachable) as raised:
            await send(client, "GET", "/x", sleep=no_sleep)
    assert raised.value.reason is reason


async def test_the_last_of_several_failed_responses_is_returned() -> None:
    client, seen = responses(503, 502, 503)
    async with client:
        assert (await send(client, "GET", "/x", sleep=no_sleep)).status_code == 503
    assert len(seen) == 3


@given(st.integers(1, 300), st.lists(st.floats(0, 3), min_size=1, max_size=400))
def test_no_window_sees_more_calls_than_allowed(per_window: int, pauses: list[float]) -> None:
    now, starts = 0.0, []

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    async def call_all() -> None:
        nonlocal now
        bucket = Bucket(per_window, 10, clock=lambda: now, sleep=sleep)
        for pause in pauses:
            now += pause if pause > 2 else 0
            await bucket.take()
            starts.append(now)

    asyncio.run(call_all())
    for i, start in enumerate(starts):
        assert sum(start <= other < start + 10 - 1e-6 for other in starts[i:]) <= per_window


async def test_a_single_call_does_not_wait_and_ready_reserves_nothing() -> None:
    waited: list[float] = []
    now = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        waited.append(seconds)
        now += seconds

    bucket = Bucket(10, 10, clock=lambda: now, sleep=sleep)
    for _ in range(5):
        await bucket.ready()
    await bucket.take()
    await bucket.take()
    assert waited == []
    await bucket.ready()
    assert len(waited) == 1
    await bucket.take()
    assert len(waited) == 1
