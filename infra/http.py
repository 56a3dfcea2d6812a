"""HTTP to third-party services: the client, the one retry policy, and a rate limit.

    Exception
    └── Unreachable     no response after all attempts; ``reason`` is timeout or unavailable

:func:`send` retries what is likely to be short: no connection, no response, 502, 503, 504. It is for calls that may be
repeated (reads, keyed writes, calls with an idempotency key). The connector decides what a response means.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import httpx
import orjson
import tenacity

from infra.outcomes import Reason

_AGAIN = frozenset({502, 503, 504})
_HEADERS = {"user-agent": "leadstream", "accept": "application/json"}

Sleep = Callable[[float], Awaitable[None]]


class Unreachable(Exception):  # noqa: N818 - a state of the service, not a defect
    """No response after all attempts. ``reason``: TIMEOUT (the call may have had its effect) or UNAVAILABLE."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


def client(
    base_url: str,
    *,
    timeout_s: float = 10,
    connections: int = 8,
    transport: httpx.AsyncBaseTransport | None = None,
) -> httpx.AsyncClient:
    """Return a client for one service; the caller closes it.

    ``timeout_s`` bounds connecting, and each wait for a part of the response. Up to ``connections`` are kept open and
    reused. ``transport``: in tests, the simulator in process.
    """
    return httpx.AsyncClient(
        base_url=base_url,
        timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, 5)),
        limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=60),
        headers=_HEADERS,
        transport=transport,
        follow_redirects=False,
    )


async def send(
    http: httpx.AsyncClient,
    method: str,
    path: str,
    *,
    body: object = None,
    headers: dict[str, str] | None = None,
    before: Callable[[], Awaitable[None]] | None = None,
    attempts: int = 3,
    sleep: Sleep = asyncio.sleep,
) -> httpx.Response:
    """Send ``body`` as JSON and return the response, whatever its status; ``before`` is awaited before each attempt.

    Raises:
        Unreachable: after ``attempts`` attempts, about 0.1 s, then 0.2 s, ... apart (random, at most 2 s).

    """
    content = None if body is None else orjson.dumps(body)
    given = dict(headers or {}) | ({} if content is None else {"content-type": "application/json"})

    async def once() -> httpx.Response:
        if before is not None:
            await before()
        return await http.request(method, path, content=content, headers=given)

    policy: tenacity.AsyncRetrying = tenacity.AsyncRetrying(
        stop=tenacity.stop_after_attempt(attempts),
        wait=tenacity.wait_random_exponential(multiplier=0.1, max=2),
        retry=tenacity.retry_if_exception_type(httpx.TransportError)
        | tenacity.retry_if_result(lambda response: response.status_code in _AGAIN),
        retry_error_callback=_last,
        sleep=sleep,
    )
    try:
        return await policy(once)
    except httpx.TimeoutException:
        raise Unreachable(Reason.TIMEOUT) from None
    except httpx.TransportError:
        raise Unreachable(Reason.UNAVAILABLE) from None


def _last(state: tenacity.RetryCallState) -> httpx.Response:
    assert state.outcome is not None  # noqa: S101 - for the type checker: tenacity calls this after an attempt
    response: httpx.Response = state.outcome.result()  # or raises what the last attempt raised
    return response


class Bucket:
    """Limits calls to ``per_window`` in any ``window_s`` seconds, for this process.

    A token bucket. Its burst is a fifth of the window's calls, its rate the rest spread over the window: a single call
    never waits, and at most ``per_window`` calls start in any window of ``window_s`` seconds.
    """

    def __init__(
        self,
        per_window: int,
        window_s: float = 10,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._burst = max(1, per_window // 5)
        self._rate = max(per_window - self._burst, 0.5) / window_s
        self._clock = clock
        self._sleep = sleep
        self._tokens = float(self._burst)
        self._at = clock()

    def _refill(self) -> float:
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        return self._tokens

    async def take(self) -> None:
        """Wait until this call may start; calls start in the order in which they asked."""
        self._refill()
        self._tokens -= 1
        if self._tokens < 0:
            await self._sleep(-self._tokens / self._rate)

    async def ready(self) -> None:
        """Wait until a call could start at once, without reserving it: claim work only then."""
        while (short := 1 - self._refill()) > 0:
            await self._sleep(short / self._rate)
