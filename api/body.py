"""The one reader of request bodies: bounded in size and in time, with and without Content-Length.

Guarantees: a body that is too large is refused by its Content-Length before a byte of it is read, otherwise after at
most one chunk more than the limit. The response reaches the client: the server discards the rest of the body, up to a
limit (see :mod:`infra.web`). Handlers call nothing else to read a body.
"""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from api.errors import Refusal

_READ_S = 30.0
_BOM = b"\xef\xbb\xbf"


async def read(request: Request, max_bytes: int, *, timeout_s: float = _READ_S) -> bytes:
    """Return the body.

    Raises:
        Refusal: ``too_large``: more than ``max_bytes``; ``slow_request``: not complete within ``timeout_s`` seconds;
            ``unsupported_encoding``: it is compressed.

    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal("unsupported_encoding", "a body with Content-Encoding is not supported: send it without")
    too_large = Refusal("too_large", f"the body is larger than {max_bytes} bytes")
    announced = request.headers.get("content-length", "0")
    # More than 18 digits is too large, and int() refuses thousands of them.
    if not (announced.isascii() and announced.isdecimal()) or len(announced) > 18 or int(announced) > max_bytes:  # noqa: PLR2004
        raise too_large
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                size += len(chunk)
                if size > max_bytes:
                    raise too_large
                chunks.append(chunk)
    except TimeoutError:
        raise Refusal("slow_request", f"the body did not arrive within {timeout_s:g} s") from None
    except ClientDisconnect:
        raise Refusal("slow_request", "the client closed the connection") from None
    return b"".join(chunks)


def as_utf8(body: bytes) -> bytes:
    """Return a text body without its UTF-8 byte order mark.

    Raises:
        Refusal: ``not_json``: the text is UTF-16 or UTF-32, which JSON over the network must not be (RFC 8259, 8.1).

    """
    body = body.removeprefix(_BOM)
    if body.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in body[:4]:
        raise Refusal("not_json", "the body is not UTF-8 but looks like UTF-16 or UTF-32: encode it as UTF-8")
    return body
