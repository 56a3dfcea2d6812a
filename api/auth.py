"""Who may send a request: every request needs an API key, every route names the scopes that it needs.

The key is the token of ``Authorization: Bearer``, the user name of ``Authorization: Basic`` (as Segment's libraries
send it), or ``X-Api-Key``. A beacon of a web page cannot have headers: only for ``text/plain`` the key may be the query
parameter ``key``, and only a key with no other scope than ``ingest``, since it is public in the page's source.

Guarantees: a request without an active key reaches no route, known or unknown; a route without scopes cannot be
created. A preflight of a browser (CORS) needs no key. Keys are neither logged nor part of a response.

Source: RFC 6750 (Bearer), RFC 7617 (Basic).
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Collection, Iterable
from typing import Any, Protocol
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from api.errors import Refusal, refused
from infra.keys import INGEST, ApiKey, digest_of, is_key

_CALLER = "leadstream.key"
_NO_KEY = (
    "no API key: send `Authorization: Bearer ls_...`, Basic authentication with the key as user name, or X-Api-Key; "
    "`leadstream keys create` makes a key"
)
_NOT_A_KEY = "this is not an API key: a key is ls_, 12 characters, _ and 43 characters"
_UNKNOWN = "this API key is unknown, expired or revoked: `leadstream keys create` makes another one"
_MAX_DIGESTS, _MAX_REMEMBERED = 10_000, 300  # headers, and the bytes of each
_MAX_ENCODED = 400  # characters of a Basic header


class Keys(Protocol):
    """The active keys: :class:`api.keyring.KeyRing`."""

    def get(self, digest: bytes) -> ApiKey | None:
        """Return the key with this digest if it is in memory and valid."""
        ...

    async def find(self, digest: bytes) -> ApiKey | None:
        """Return the key with this digest, looked up if it is not in memory."""
        ...


class GuardedRoute(Route):
    """A route that needs a key with at least one of ``scopes``."""

    def __init__(
        self, path: str, endpoint: Any, *, scopes: Collection[str], methods: Collection[str] | None = None
    ) -> None:
        if not scopes:
            raise ValueError(f"{path}: a route needs at least one scope")
        super().__init__(path, endpoint, methods=methods)
        self.scopes = frozenset(scopes)
        self.app = _Permitted(self.app, self.scopes)


class _Permitted:
    def __init__(self, app: ASGIApp, scopes: frozenset[str]) -> None:
        self._app = app
        self._scopes = scopes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key: ApiKey = scope[_CALLER]
        if self._scopes.isdisjoint(key.scopes):
            raise Refusal("forbidden", f"the key {key.id} lacks the scope {' or '.join(sorted(self._scopes))}")
        await self._app(scope, receive, send)


def guarded(routes: Iterable[BaseRoute]) -> list[BaseRoute]:
    """Return ``routes``.

    Raises:
        TypeError: one of them names no scopes.

    """
    found = list(routes)
    for route in found:
        if not isinstance(route, GuardedRoute):
            raise TypeError(f"{route!r} names no scopes: make it a GuardedRoute")
    return found


def caller(request: Request) -> ApiKey:
    """Return the key of a request that was admitted."""
    key: ApiKey = request.scope[_CALLER]
    return key


class Authentication:
    """Admits requests with an active key to ``app`` and refuses all others."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys
        # Authorization header of an admitted request -> digest of its key: to find it costs a fifth of to compute it.
        self._digests: dict[bytes, bytes] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        for name, value in scope["headers"]:
            if name == b"authorization":
                digest = self._digests.get(value)
                if digest is not None and (key := self._keys.get(digest)) is not None:
                    scope[_CALLER] = key
                    await self._app(scope, receive, send)
                    return
                break
        try:
            scope[_CALLER] = await self._admitted(scope)
        except Refusal as refusal:
            await (await refused(Request(scope), refusal))(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _admitted(self, scope: Scope) -> ApiKey:
        secret, is_public, header = _credentials(scope)
        digest = digest_of(secret)
        key = self._keys.get(digest) or await self._keys.find(digest)
        if key is None:
            raise Refusal("unauthorized", _UNKNOWN)
        if is_public and key.scopes != {INGEST}:
            raise Refusal("forbidden", f"the key {key.id} may not be in a URL: use one with the scope ingest only")
        if len(self._digests) >= _MAX_DIGESTS:
            self._digests.clear()
        if header and len(header) <= _MAX_REMEMBERED:
            self._digests[header] = digest
        return key


def _credentials(scope: Scope) -> tuple[bytes, bool, bytes]:
    """Return the key of a request, whether it is in the URL, and the Authorization header that it is in.

    Raises:
        Refusal: ``unauthorized``: there is none, or it has not the form of a key.

    """
    own = content_type = b""
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, rest = value.partition(b" ")
            kind = scheme.lower()
            if kind == b"bearer":
                return _checked(rest.strip()), False, value
            if kind == b"basic":
                return _checked(_user_name(rest)), False, value
        elif name == b"x-api-key":
            own = value
        elif name == b"content-type":
            content_type = value
    if own:
        return _checked(own.strip()), False, b""
    if scope["query_string"] and content_type.partition(b";")[0].strip().lower() == b"text/plain":
        return _checked(_parameter(scope["query_string"])), True, b""
    raise Refusal("unauthorized", _NO_KEY)


def _parameter(query: bytes) -> bytes:
    try:
        return parse_qs(query, max_num_fields=20).get(b"key", [b""])[0]
    except ValueError:  # not ASCII, or too many fields
        return b""


def _checked(secret: bytes) -> bytes:
    if not is_key(secret):
        raise Refusal("unauthorized", _NOT_A_KEY if secret else _NO_KEY)
    return secret


def _user_name(encoded: bytes) -> bytes:
    try:
        return b64decode(encoded[:_MAX_ENCODED].strip(), validate=True).partition(b":")[0]
    except binascii.Error:
        return b"?"
