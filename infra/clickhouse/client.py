"""ClickHouse over HTTP: raw inserts with a deduplication token, and queries as rows.

The sink's bytes go through as they are, which clickhouse-connect has no way for; analysts use what they like.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import httpx
import orjson

from infra.errors import DependencyUnavailable

# Codes that say "not now": timeouts, too many queries or parts, no memory or disk, read-only, network, shutting down.
_NOT_NOW = frozenset({159, 160, 164, 202, 203, 209, 210, 236, 241, 242, 243, 252, 319, 394, 425, 439, 499, 999})
_FAILED = 400
_ESCAPED = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r", "\0": "\\0"})


class ClickHouseError(Exception):
    """ClickHouse refuses a statement or its data for good; ``code`` is its own error code."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class ClickHouse:
    """A client of the server at ``url`` (``http://user:password@host:port/database``); close it or use ``async with``.

    Every method raises DependencyUnavailable while the server is not reachable or not able, and ClickHouseError when it
    says no for good.
    """

    def __init__(self, url: str, *, database: str | None = None, timeout_s: float = 60) -> None:
        place = urlsplit(url)
        auth = (unquote(place.username), unquote(place.password or "")) if place.username else None
        self._database = place.path.strip("/") or "default" if database is None else database
        self._http = httpx.AsyncClient(
            base_url=f"{place.scheme}://{place.hostname}:{place.port or 8123}",
            auth=auth,
            timeout=httpx.Timeout(timeout_s, connect=3),
            trust_env=False,
        )

    async def insert(self, table: str, form: str, data: bytes, token: str = "") -> None:
        """Insert ``data`` in format ``form``; the same ``token`` again changes nothing, in dependent views neither."""
        settings = {"query": f"INSERT INTO {table} FORMAT {form}", "parallel_view_processing": "1"}
        if token:
            settings |= {
                "insert_deduplication_token": token,
                "deduplicate_blocks_in_dependent_materialized_views": "1",
            }
        await self._post(settings, data)

    async def execute(self, statement: str, **params: Any) -> None:
        """Run a statement that returns nothing of interest."""
        await self._post(_params(params), statement.encode())

    async def query(self, statement: str, **params: Any) -> list[dict[str, Any]]:
        """Return rows by column name; ``{name:Type}`` in the statement stands for a parameter."""
        asked = _params(params) | {"default_format": "JSONEachRow", "output_format_json_quote_64bit_integers": "0"}
        return [orjson.loads(line) for line in (await self._post(asked, statement.encode())).splitlines()]

    async def _post(self, params: dict[str, str], body: bytes) -> bytes:
        try:
            answer = await self._http.post("/", params={"database": self._database} | params, content=body)
        except httpx.TransportError as error:
            raise DependencyUnavailable("ClickHouse", type(error).__name__) from error
        if answer.status_code < _FAILED:
            return answer.content
        code = int(answer.headers.get("x-clickhouse-exception-code", "999"))
        if code in _NOT_NOW:
            raise DependencyUnavailable("ClickHouse", f"code {code}")
        raise ClickHouseError(code, answer.text[:500])

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _params(params: dict[str, Any]) -> dict[str, str]:
    # Values of parameters come in ClickHouse's "escaped" format, as in TabSeparated.
    return {f"param_{name}": str(value).translate(_ESCAPED) for name, value in params.items()}
