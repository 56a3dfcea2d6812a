"""Who may use the embedded ClickHouse server: users with passwords, checked as clickhouse-server checks them.

``leadstream`` may do everything; ``reader`` may only read tables, as ``leadstream query`` does.

Source: ClickHouse documentation, "HTTP Interface", "Permissions for Queries"; exceptionCodeToHTTPStatus.cpp.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

USER = "leadstream"
READER = "reader"
_AUTHENTICATION_FAILED = "516"
_COMMENT = re.compile(rb"/\*.*?\*/|--[^\n]*|#[ !][^\n]*", re.DOTALL)
# The engine's read-only mode forbids every write but that of a local file, and lets a function read one.
_LOCAL_FILE = re.compile(rb"\boutfile\b|\bfile[`\"]?\s*\(", re.IGNORECASE)


def refusal(request: Request, passwords: Mapping[str, str]) -> Response | None:
    """Return the response to a request without a user and its password, or None for a permitted request."""
    user, found = _credentials(request)
    expected = passwords.get(user, "")
    # In constant time: the duration says nothing about the password.
    if hmac.compare_digest(found.encode(), expected.encode()) and expected:
        return None
    text = (
        f"Code: {_AUTHENTICATION_FAILED}. DB::Exception: {user}: Authentication failed: password is incorrect, or "
        "there is no user with such name. (AUTHENTICATION_FAILED)\n"
    )
    return Response(text, 403, {"X-ClickHouse-Exception-Code": _AUTHENTICATION_FAILED})


def reads_only(request: Request) -> bool:
    """Return whether a permitted request may only read: that of the user ``reader``, or with the setting readonly."""
    return _credentials(request)[0] == READER or request.query_params.get("readonly", "0") != "0"


def uses_local_files(statement: bytes) -> bool:
    """Return whether a statement may read or write a file of this machine."""
    return _LOCAL_FILE.search(_COMMENT.sub(b" ", statement)) is not None or _LOCAL_FILE.search(statement) is not None


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
