"""The health pages, the same for the API and for every worker: GET /live, /ready and /metrics."""

from __future__ import annotations

import asyncio
import time

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from infra.runtime import Status

_CACHE_S = 1.0


class Health:
    """The three pages of a process with ``status``, whose ``check`` is called at most once a second."""

    def __init__(self, status: Status) -> None:
        self._status = status
        self._lock = asyncio.Lock()
        self._unavailable = ""
        self._checked_at = float("-inf")

    @property
    def routes(self) -> list[Route]:
        """Routes of the three pages."""
        return [Route("/live", self.live), Route("/ready", self.ready), Route("/metrics", self.metrics)]

    async def live(self, _: Request) -> Response:
        """Respond with 200 while the process serves requests."""
        return PlainTextResponse("live\n")

    async def ready(self, _: Request) -> Response:
        """Respond with 200 while the process can do its work, else with 503 and the reason."""
        reason = await self._reason()
        return PlainTextResponse(f"{reason or 'ready'}\n", 503 if reason else 200)

    async def metrics(self, _: Request) -> Response:
        """Respond with the metrics, in the text format of Prometheus."""
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    async def _reason(self) -> str:
        status = self._status
        if status.failure or status.waiting:
            return status.failure or status.waiting
        if not status.ready:
            return "starting"
        if status.check is None:
            return ""
        async with self._lock:
            if time.monotonic() - self._checked_at > _CACHE_S:
                self._unavailable = await status.check()
                self._checked_at = time.monotonic()
        return status.failure or self._unavailable  # the check may have detected a permanent failure


def app(health: Health) -> Starlette:
    """Return an application with only these pages, which need no key: they are served on a port of their own."""
    return Starlette(routes=health.routes)
