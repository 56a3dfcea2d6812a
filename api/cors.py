"""Cross-origin requests of browsers (CORS): pages of configured origins may send events.

Only ``/v1/events`` and ``/v1/validate`` answer other origins: a page must not read metrics or schemas of a server that
only the reader's network reaches. It wraps the whole application, so that error responses have the headers too: without
them a page cannot read why its events were refused. No credentials are allowed: there are no cookies.

Source: https://fetch.spec.whatwg.org/#http-cors-protocol
"""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

PATHS = frozenset({"/v1/events", "/v1/validate"})
_MAX_AGE_S = 7200  # how long a browser may remember a preflight; Chrome's maximum


class Cors:
    """Answers preflights and adds the headers for requests from ``origins``, exact ones or ``*``; others get none."""

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        self._app = app
        self._origins = frozenset(origins)
        self._answering = CORSMiddleware(
            app,
            allow_origins=list(origins),
            allow_methods=["POST"],
            allow_headers=["*"],  # libraries add their own; there are no credentials
            expose_headers=["Retry-After"],
            max_age=_MAX_AGE_S,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        answers = scope["type"] == "http" and scope["path"] in PATHS and self._allows(Headers(scope=scope))
        await (self._answering if answers else self._app)(scope, receive, send)

    def _allows(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        return origin is not None and not self._origins.isdisjoint({origin, "*"})
