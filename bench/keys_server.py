"""``python -m bench.keys_server keys|open``: the API with keys, or without, and a broker that confirms at once.

It prints its port. Both have the same routes and handlers, and nothing around them, so the keys' share is the largest
that it can be.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import cast

import uvloop
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from api import errors
from api.app import make_routes
from api.auth import Authentication
from api.keyring import KeyRing
from infra import web
from infra.kafka.producer import Deliverer, Delivery, Output
from infra.keys import INGEST, ApiKey, digest_of
from infra.runtime import collect_garbage_rarely, until_signalled
from infra.settings import Settings

KEY = "ls_benchbenchbe_" + "x" * 43  # admitted by this program only
_PERMITTED = ApiKey("benchbenchbe", "acme", frozenset({INGEST}), 1 << 62)


class _Source:
    """Stands in for Postgres: the one key, and as many others as an installation has."""

    async def active(self, limit: int) -> dict[bytes, ApiKey]:
        others = {digest_of(b"%d" % number): _PERMITTED for number in range(min(1000, limit - 1))}
        return others | {digest_of(KEY.encode()): _PERMITTED}

    async def find(self, _: Sequence[bytes]) -> dict[bytes, ApiKey]:
        return {}

    async def note_used(self, ids: Sequence[str]) -> None: ...


class _Broker:
    async def deliver_each(self, outputs: Sequence[Output]) -> list[Delivery]:
        return [Delivery(0, 1)] * len(outputs)


class _Open:
    """Admits everybody, with the permissions of the key."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["leadstream.key"] = _PERMITTED
        await self._app(scope, receive, send)


async def _main(*, with_keys: bool) -> None:
    routes = make_routes(Settings(), cast("Deliverer", _Broker()))
    app = Starlette(routes=routes, exception_handlers={errors.Refusal: errors.refused})
    ring = KeyRing(_Source(), stale_s=86_400)
    await ring.read()
    listener = web.listen("127.0.0.1", 0)
    os.write(1, f"{listener.getsockname()[1]}\n".encode())
    await web.serve(Authentication(app, ring) if with_keys else _Open(app), listener, grace_s=1)


if __name__ == "__main__":
    collect_garbage_rarely()
    uvloop.run(until_signalled(_main(with_keys=sys.argv[1] == "keys")))
