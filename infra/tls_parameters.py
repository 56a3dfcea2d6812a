"""The TLS parameters in the addresses of Postgres, ClickHouse and Redis: checked at start, with errors that name them.

``postgresql://…?sslmode=verify-full&sslrootcert=/etc/ca.pem``, ``https://…?ca_cert=/etc/ca.pem`` (ClickHouse) and
``rediss://…?ssl_ca_certs=/etc/ca.pem``: the names are those of each client library. Errors never contain an address,
which has a password.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
# Setting -> the schemes with TLS ("": by sslmode), and the parameters that name files.
_FILES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "database_url": ("", ("sslrootcert", "sslcert", "sslkey", "sslcrl")),
    "clickhouse_url": ("https", ("ca_cert", "client_cert", "client_cert_key")),
    "clickhouse_read_url": ("https", ("ca_cert", "client_cert", "client_cert_key")),
    "redis_url": ("rediss", ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")),
}


def parameters(url: str) -> dict[str, str]:
    """Return the parameters of an address."""
    return dict(parse_qsl(urlsplit(url).query))


def problems(setting: str, url: str) -> Iterator[str]:
    """Yield what is wrong with the TLS parameters in the address ``url`` of ``setting``."""
    scheme, files = _FILES[setting]
    found = parameters(url)
    mode = found.get("sslmode")
    if not scheme and mode is not None and mode not in _MODES:
        yield f"sslmode must be one of {', '.join(_MODES)}; verify-full checks the server's certificate and name"
    for name in files:
        if name not in found:
            continue
        if scheme and urlsplit(url).scheme != scheme:
            yield f"{name} has no effect without TLS: begin the address with {scheme}://"
        elif not scheme and mode not in _MODES[3:]:
            yield f"{name} has no effect without TLS: add sslmode=verify-full"
        if not Path(found[name]).is_file():
            yield f"{name}: there is no file {found[name]}"
