"""The API process: creates its clients, registers the routes and serves until a stop.

Events are sent to ``/v1/events``; the other paths are for developers of senders. Every request needs an API key
(:mod:`api.auth`); health checks and metrics have a port of their own (``health_port``).

Crash: the process keeps no state. An event with the response 202 is on the broker, so the process may be killed at any
time. Any number of instances can run behind a load balancer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import confluent, errors, event_types
from api.auth import Authentication, GuardedRoute, Keys, guarded
from api.cors import Cors
from api.health import kafka_unavailable
from api.ingest.accept import Acceptor, Checker
from api.ingest.native import Native
from api.keyring import KeyRing
from infra import metrics, web
from infra.kafka import client as kafka
from infra.kafka.producer import Deliverer
from infra.keys import INGEST, READ
from infra.postgres.keys_table import KeysTable
from infra.postgres.pool import close, connect
from infra.runtime import Stop, log, run_together
from infra.settings import Settings
from infra.tenant_files.last_valid import restore_last_valid
from infra.tenants import Tenants

_DELIVER_S = 5.0
_KEY_CONNECTIONS = 2  # to Postgres: one reads all keys, one looks up unknown ones


def build(settings: Settings, deliverer: Deliverer, keys: Keys, tenants: Tenants | None = None) -> ASGIApp:
    """Return the application with its clients, which the caller closes.

    Raises:
        TypeError: a route names no scopes.

    """
    routes = make_routes(settings, deliverer, tenants)
    handlers = {
        errors.Refusal: errors.refused,
        HTTPException: errors.http_error,
        Exception: errors.unexpected,
    }
    app: ASGIApp = Authentication(Starlette(routes=routes, exception_handlers=handlers), keys)
    return _Counted(Cors(app, settings.allowed_origins), routes)


def make_routes(settings: Settings, deliverer: Deliverer, tenants: Tenants | None = None) -> list[BaseRoute]:
    """Return all routes of the API. ``tenants``: those whose events are accepted; None: all."""
    checker = Checker(
        max_event_bytes=settings.max_event_bytes,
        max_ahead_us=settings.max_clock_ahead_s * 1_000_000,
        tenants=tenants,
    )
    native = Native(checker, Acceptor(deliverer, timeout_s=_DELIVER_S + 2), settings.allowed_origins)
    return guarded(
        [
            GuardedRoute("/v1/events", native.events, methods=["POST"], scopes={INGEST}),
            GuardedRoute("/v1/validate", native.validate, methods=["POST"], scopes={INGEST}),
            GuardedRoute("/v1/errors/{code}", errors.explain, scopes={INGEST, READ}),
            *event_types.ROUTES,
            *confluent.ROUTES,
        ]
    )


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
    pool = await connect(settings.database_url, size=_KEY_CONNECTIONS, application="api")
    keys = KeyRing(KeysTable(pool), stale_s=settings.api_keys_stale_s)
    tenants = Tenants.load(settings)

    async def unavailable() -> str:
        return keys.unavailable or await kafka_unavailable(admin)

    stop.status.check = unavailable
    port = listener.getsockname()[1]
    log("api").info("listening", extra={"fields": {"host": settings.api_host, "port": port}})
    serving = web.serve(build(settings, deliverer, keys, tenants), listener, grace_s=max(1, settings.shutdown_s - 2))
    files = restore_last_valid(tenants, pool, stop), tenants.watch(stop)
    working = asyncio.create_task(run_together(serving, keys.run(), *files))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        working.cancel()
        with suppress(asyncio.CancelledError):
            await working
    finally:
        stopping.cancel()
        await deliverer.close()
        await close(pool)
