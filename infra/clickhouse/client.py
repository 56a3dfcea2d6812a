"""ClickHouse over HTTP by clickhouse-connect: raw inserts with a deduplication token, queries as rows, its errors.

The library adds what we would have to write and maintain (TLS, compression, binding of parameters, sessions); which
errors pass is decided here, in one table. The proxies of the environment (``HTTP_PROXY``, ``NO_PROXY``) apply.

Source: https://clickhouse.com/docs/integrations/python
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import unquote, urlsplit

import orjson

from infra.errors import DependencyUnavailable

if TYPE_CHECKING:
    from clickhouse_connect.driver import AsyncClient

# Codes that say "not now": timeouts, too many queries or parts, no memory or disk, read-only, network, shutting down.
_NOT_NOW = frozenset({159, 160, 164, 202, 203, 209, 210, 236, 241, 242, 243, 252, 319, 394, 425, 439, 499, 999})
_KEEPALIVE_S = 5  # below every server's own, or a request could go to a connection that is just being closed
_CHUNK_BYTES = 1 << 20
_ERROR_CHARS = 500

Result = TypeVar("Result")


class ClickHouseError(Exception):
    """ClickHouse rejects a statement or its data, and will each time; ``code`` is its own error code."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class ClickHouse:
    """A client of the server at ``url`` (``http://user:password@host:port/database``); close it or use ``async with``.

    It connects at the first call, so that it can be made while the server is unavailable; the database need not exist
    by then. ``timeout_s`` bounds each wait for a part of an answer.

    Every method raises DependencyUnavailable while the server is unreachable or not able, and ClickHouseError when it
    rejects the call.
    """

    def __init__(self, url: str, *, timeout_s: float = 60) -> None:
        self._place = urlsplit(url)
        self._timeout_s = timeout_s
        self._connecting = asyncio.Lock()
        self._client: AsyncClient | None = None
        self.database = unquote(self._place.path.strip("/")) or "default"

    async def insert(self, table: str, form: str, data: bytes, token: str = "") -> None:
        """Insert ``data`` in format ``form``; the same ``token`` again changes nothing, in dependent views neither."""
        settings = {"parallel_view_processing": "1"}
        if token:
            settings |= {
                "insert_deduplication_token": token,
                "deduplicate_blocks_in_dependent_materialized_views": "1",
            }
        client = await self._connected()
        # As chunks: of bytes the library makes a copy that begins with the statement, a fifth of a sink's throughput.
        await _classified(client.raw_insert(table, insert_block=_chunks(data), settings=settings, fmt=form))

    async def execute(self, statement: str, **params: Any) -> None:
        """Run a statement that returns nothing of interest; ``{name:Type}`` in it stands for a parameter."""
        client = await self._connected()
        await _classified(client.raw_query(statement, parameters=params or None))

    async def query(self, statement: str, **params: Any) -> list[dict[str, Any]]:
        """Return rows by column name; ``{name:Type}`` in the statement stands for a parameter."""
        client = await self._connected()
        answer = await _classified(
            client.raw_query(
                statement,
                parameters=params or None,
                settings={"output_format_json_quote_64bit_integers": "0"},
                transport_settings={"X-ClickHouse-Format": "JSONEachRow"},
            )
        )
        return [orjson.loads(line) for line in answer.splitlines()]

    async def create_database(self) -> None:
        """Create the database of the URL where there is none."""
        client = await self._connected()
        await _classified(client.raw_query(f"CREATE DATABASE IF NOT EXISTS `{self.database}`", use_database=False))

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()

    async def _connected(self) -> AsyncClient:
        async with self._connecting:
            if self._client is None:
                self._client = await _classified(self._connect())
            return self._client

    async def _connect(self) -> AsyncClient:
        # Only here: it takes a fifth of a second to import, and most processes that can use it do not.
        from clickhouse_connect import get_async_client  # noqa: PLC0415

        place = self._place
        client = await get_async_client(
            interface=place.scheme,
            host=place.hostname,
            port=place.port or (8443 if place.scheme == "https" else 8123),
            username=unquote(place.username) if place.username else None,
            password=unquote(place.password or ""),
            compress=False,
            connect_timeout=3,
            send_receive_timeout=self._timeout_s,
            query_retries=0,  # retrying is the caller's, with backoff
            keepalive_timeout=_KEEPALIVE_S,
            autogenerate_session_id=False,
            show_clickhouse_errors=True,
        )
        client.database = self.database  # after connecting, which does not need it to exist
        return client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def _chunks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), _CHUNK_BYTES):
        yield data[start : start + _CHUNK_BYTES]


async def _classified(call: Awaitable[Result]) -> Result:
    from clickhouse_connect.driver.exceptions import DatabaseError, ProgrammingError  # noqa: PLC0415 - see above

    try:
        return await call
    except ProgrammingError:
        raise  # of the library itself: a bug of ours
    except DatabaseError as error:
        code = error.code
        if code is None:  # no answer, or not from ClickHouse: a proxy's
            raise DependencyUnavailable("ClickHouse", type(error.__cause__ or error).__name__) from error
        if code in _NOT_NOW:
            raise DependencyUnavailable("ClickHouse", f"code {code}") from error
        raise ClickHouseError(code, _text(str(error))) from error


def _text(message: str) -> str:
    """Return the server's own words without what the library puts around them."""
    return (
        message.partition("server response: ")[2].rpartition(" (for url ")[0][:_ERROR_CHARS] or message[:_ERROR_CHARS]
    )
