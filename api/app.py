"""The front door: builds every client, puts the routes together, serves until it is asked to stop.

Events go in by ``/v1/events``; the rest helps who sends them. The process keeps nothing: what it said 202 to is on the
broker, so it may be killed at any time and run as often as wanted behind a load balancer.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from confluent_kafka.admin import AdminClient
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import confluent, errors, event_types
from api.health import Health
from api.ingest.accept import Acceptor, Checker
from api.ingest.native import Native
from infra import metrics
from infra.kafka.producer import Deliverer
from infra.runtime import Stop, log
from infra.settings import Settings

_DELIVER_S = 5.0
_BACKLOG = 2048


def build(settings: Settings, deliverer: Deliverer, admin: AdminClient) -> ASGIApp:
    """Return the application over its clients; whoever made them closes them."""
    checker = Checker(max_event_bytes=settings.max_event_bytes, max_ahead_us=settings.max_clock_ahead_s * 1_000_000)
    native = Native(checker, Acceptor(deliverer, timeout_s=_DELIVER_S + 2))
    routes = [
        Route("/v1/events", native.events, methods=["POST"]),
        Route("/v1/validate", native.validate, methods=["POST"]),
        Route("/v1/errors/{code}", errors.explain),
        *event_types.ROUTES,
        *confluent.ROUTES,
        *Health(admin).routes,
    ]
    handlers = {
        errors.Refusal: errors.refused,
        HTTPException: errors.http_error,
        Exception: errors.unexpected,
    }
    return _Counted(Starlette(routes=routes, exception_handlers=handlers))


class _Counted:
    """Counts requests by the first two parts of the path and the status."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                # Paths that nobody serves are one label, or a scanner would make thousands.
                path = "other" if message["status"] == 404 else "/".join(scope["path"].split("/")[:3])  # noqa: PLR2004
                metrics.HTTP_REQUESTS.labels(path, str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, counting)


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to infra.runtime."""
        yield


async def main(settings: Settings, stop: Stop) -> None:
    """Serve on ``api_host``:``api_port`` (0: any free one, said in the log) until ``stop``."""
    listener = socket.create_server((settings.api_host, settings.api_port), backlog=_BACKLOG)
    deliverer = Deliverer(settings.kafka_bootstrap, timeout_s=_DELIVER_S)
    admin = AdminClient({"bootstrap.servers": settings.kafka_bootstrap, "log_level": 2})
    server = _Server(
        uvicorn.Config(
            build(settings, deliverer, admin),
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=max(1, int(settings.shutdown_s - 2)),
        )
    )
    log("api").info("listening", extra={"fields": {"host": settings.api_host, "port": listener.getsockname()[1]}})
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    asked = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({serving, asked}, return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True  # answers what is in hand, takes nothing new
        await serving
    finally:
        asked.cancel()
        await deliverer.close()
        listener.close()
