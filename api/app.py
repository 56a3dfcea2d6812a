"""The API process: creates its clients, registers the routes and serves until a stop.

Events are sent to ``/v1/events``; the other paths are for health checks and for developers of senders.

Crash: the process keeps no state. An event with the response 202 is on the broker, so the process may be killed at any
time. Any number of instances can run behind a load balancer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from confluent_kafka.admin import AdminClient
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import confluent, errors, event_types
from api.cors import Cors
from api.health import kafka_unavailable
from api.ingest.accept import Acceptor, Checker
from api.ingest.native import Native
from infra import metrics, web
from infra.health import Health
from infra.kafka import client as kafka
from infra.kafka.producer import Deliverer
from infra.runtime import Status, Stop, log
from infra.settings import Settings

_DELIVER_S = 5.0


def build(settings: Settings, deliverer: Deliverer, admin: AdminClient, status: Status) -> ASGIApp:
    """Return the application with its clients, which the caller closes. ``/ready`` shows ``status``."""
    checker = Checker(max_event_bytes=settings.max_event_bytes, max_ahead_us=settings.max_clock_ahead_s * 1_000_000)
    native = Native(checker, Acceptor(deliverer, timeout_s=_DELIVER_S + 2), settings.allowed_origins)
    routes: list[BaseRoute] = [
        Route("/v1/events", native.events, methods=["POST"]),
        Route("/v1/validate", native.validate, methods=["POST"]),
        Route("/v1/errors/{code}", errors.explain),
        *event_types.ROUTES,
        *confluent.ROUTES,
        *Health(status, partial(kafka_unavailable, admin)).routes,
    ]
    handlers = {
        errors.Refusal: errors.refused,
        HTTPException: errors.http_error,
        Exception: errors.unexpected,
    }
    app: ASGIApp = Starlette(routes=routes, exception_handlers=handlers)
    return _Counted(Cors(app, settings.allowed_origins), routes)


class _Counted:
    """Counts requests by status and by the template of the route.

    Guarantees: a label never has a value from a request. Paths and methods that no route has share one label.
    """

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute]) -> None:
        self._app = app
        self._templates = dict(_templates(routes))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                # The router, which shares the scope, sets the endpoint of the route that it found.
                found = message["status"] != 405 and self._templates.get(scope.get("endpoint"))  # noqa: PLR2004
                metrics.HTTP_REQUESTS.labels(found or "other", str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, counting)


def _templates(routes: Sequence[BaseRoute], prefix: str = "") -> Iterator[tuple[Any, str]]:
    """Yield the endpoint and the path of each route, those of mounted applications too."""
    for route in routes:
        if isinstance(route, Route):
            yield route.endpoint, prefix + route.path
        elif isinstance(route, Mount):
            yield route.app, prefix + route.path
            yield from _templates(route.routes or (), prefix + route.path)


async def main(settings: Settings, stop: Stop) -> None:
    """Serve on ``api_host`` and ``api_port`` (0: any free port, see the log event ``listening``) until ``stop``.

    A Kafka client that fails permanently makes ``stop`` fail: ``/ready`` answers 503 at once, requests that have
    begun are answered, and the process ends to be restarted.
    """
    listener = web.listen(settings.api_host, settings.api_port)
    deliverer = Deliverer(settings, "api", timeout_s=_DELIVER_S, on_fatal=stop.fail)
    admin = kafka.admin(settings, "api", on_fatal=stop.fail)
    port = listener.getsockname()[1]
    app = build(settings, deliverer, admin, stop.status)
    log("api").info("listening", extra={"fields": {"host": settings.api_host, "port": port}})
    serving = asyncio.create_task(web.serve(app, listener, grace_s=max(1, settings.shutdown_s - 2)))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving
    finally:
        stopping.cancel()
        await deliverer.close()
