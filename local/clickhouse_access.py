"""Who may use the embedded ClickHouse server: one user with a password, checked as clickhouse-server checks it.

Source: ClickHouse documentation, "HTTP Interface"; exceptionCodeToHTTPStatus.cpp.
"""

from __future__ import annotations

import base64
import binascii
import hmac

from starlette.requests import Request
from starlette.responses import Response

USER = "leadstream"
_AUTHENTICATION_FAILED = "516"


def refusal(request: Request, password: str) -> Response | None:
    """Return the response to a request without the right user and password, or None for a permitted request."""
    user, found = _credentials(request)
    # Both are compared, in constant time: the duration says nothing about either.
    if hmac.compare_digest(user.encode(), USER.encode()) & hmac.compare_digest(found.encode(), password.encode()):
        return None
    text = (
        f"Code: {_AUTHENTICATION_FAILED}. DB::Exception: {user}: Authentication failed: password is incorrect, or "
        "there is no user with such name. (AUTHENTICATION_FAILED)\n"
    )
    return Response(text, 403, {"X-ClickHouse-Exception-Code": _AUTHENTICATION_FAILED})


def _credentials(request: Request) -> tuple[str, str]:
    """Return user and password: of ClickHouse's headers, else of basic authentication, else of the URL."""
    headers, parameters = request.headers, request.query_params
    if "x-clickhouse-user" in headers or "x-clickhouse-key" in headers:
        values = (headers.get("x-clickhouse-user", "default"), headers.get("x-clickhouse-key", ""))
        user, key = (value.encode("latin-1").decode(errors="replace") for value in values)
        return user, key
    scheme, _, encoded = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            user, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return "", ""
        return user, password
    return parameters.get("user", "default"), parameters.get("password", "")
