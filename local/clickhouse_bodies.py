"""Decompresses the bodies that are sent to the embedded ClickHouse server."""

from __future__ import annotations

import gzip

import cramjam


class BodyError(Exception):
    """The body of a request cannot be decompressed as its Content-Encoding says."""


def decoded_body(body: bytes, encoding: str) -> bytes:
    """Return a body without its Content-Encoding.

    Raises:
        BodyError: it cannot be decompressed.

    """
    try:
        return _decompressed(body, encoding)
    except Exception as error:
        raise BodyError(str(error)) from error


def _decompressed(body: bytes, encoding: str) -> bytes:
    if encoding == "gzip":
        return gzip.decompress(body)
    if encoding == "lz4":
        return bytes(cramjam.lz4.decompress(body))
    if encoding == "zstd":
        return bytes(cramjam.zstd.decompress(body))
    if encoding in ("", "identity"):
        return body
    raise ValueError(f"Content-Encoding {encoding} is not supported; use gzip, lz4, zstd or identity")
