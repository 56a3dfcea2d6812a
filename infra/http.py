"""HTTP calls to third-party services: the client, the one retry policy, and a rate limit.

    Exception
    └── Unreachable     no response after all attempts; ``reason`` is timeout or unavailable

:func:`send` retries failures that are likely to be temporary: no connection, no response, status 502, 503 or 504. Use
it only for calls that may be repeated (reads, keyed writes, calls with an idempotency key). The connector interprets
the response.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import httpx
import orjson
import tenacity

from infra.outcomes import Reason

_RETRIED = frozenset({502, 503, 504})
_HEADERS = {"user-agent": "leadstream", "accept": "application/json"}

Sleep = Callable[[float], Awaitable[None]]


class Unreachable(Exception):  # noqa: N818 - a state of the service, not a defect
    """No response after all attempts. ``reason``: TIMEOUT (the call may have taken effect) or UNAVAILABLE."""

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
    """Return an HTTP client for one service; the caller closes it.

    ``timeout_s`` limits, in seconds, each wait for a part of the response; connecting may take at most 5 s of it.
    ``connections`` is the maximum number of connections, which are reused. ``transport`` replaces the network in tests.
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
    """Send ``body`` as JSON and return the response, whatever its status.

    ``before`` is awaited before each attempt, such as a rate limit. The wait between attempts is random: up to 0.1 s,
    then up to 0.2 s, doubling up to 2 s. If the last attempt gets status 502, 503 or 504, that response is returned.

    Raises:
        Unreachable: no response after ``attempts`` attempts.

    """
    content = None if body is None else orjson.dumps(body)
    all_headers = dict(headers or {}) | ({} if content is None else {"content-type": "application/json"})

    async def once() -> httpx.Response:
        if before is not None:
            await before()
        return await http.request(method, path, content=content, headers=all_headers)

    policy: tenacity.AsyncRetrying = tenacity.AsyncRetrying(
        stop=tenacity.stop_after_attempt(attempts),
        wait=tenacity.wait_random_exponential(multiplier=0.1, max=2),
        retry=tenacity.retry_if_exception_type(httpx.TransportError)
        | tenacity.retry_if_result(lambda response: response.status_code in _RETRIED),
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
    """Rate limit of this process: at most ``per_window`` calls start in any ``window_s`` seconds.

    A token bucket: a fifth of the calls may start in a burst, the rest are spread over the window. A call after an idle
    time does not wait.
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
        """Wait until this call may start; calls start in the order in which they were requested."""
        self._refill()
        self._tokens -= 1
        if self._tokens < 0:
            await self._sleep(-self._tokens / self._rate)

    async def ready(self) -> None:
        """Wait until a call could start without a wait; nothing is reserved. Callers claim work only then."""
        while (short := 1 - self._refill()) > 0:
            await self._sleep(short / self._rate)
