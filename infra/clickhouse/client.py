"""ClickHouse client over HTTP, on clickhouse-connect: inserts with a deduplication token, statements and queries.

The library does TLS, connections and the binding of parameters. This module decides which errors are temporary. The
proxies of the environment (``HTTP_PROXY``, ``NO_PROXY``) apply.

Source: https://clickhouse.com/docs/integrations/python
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Collection
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import unquote, urlsplit

import orjson

from infra.errors import DependencyUnavailable
from infra.tls_parameters import parameters

if TYPE_CHECKING:
    from clickhouse_connect.driver import AsyncClient

# Codes of temporary conditions: timeout, too many queries or parts, no memory or disk, read-only, network, shutdown.
_TEMPORARY = frozenset({159, 160, 164, 202, 203, 209, 210, 236, 241, 242, 243, 252, 319, 394, 425, 439, 499, 999})
_READONLY = 164
_KEEPALIVE_S = 5  # shorter than any server's: a request must not use a connection that the server is closing
_CHUNK_BYTES = 1 << 20
_ERROR_CHARS = 500

Result = TypeVar("Result")


class ClickHouseError(Exception):
    """ClickHouse permanently rejects a statement or its data; ``code`` is the error code of ClickHouse."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class ClickHouse:
    """A client of the server at ``url`` (``http://user:password@host:port/database``); close it or use ``async with``.

    It connects with the first call, so it can be created while the server is unavailable or the database is missing.
    ``timeout_s`` limits each wait for a part of a response, in seconds. ``read_only``: a
    :meth:`query` that writes is rejected.

    Every method raises DependencyUnavailable while the server is unavailable, and ClickHouseError when the server
    rejects the call.
    """

    def __init__(self, url: str, *, timeout_s: float = 60, read_only: bool = False) -> None:
        self._settings = {"readonly": "1"} if read_only else {}
        self._temporary = _TEMPORARY - ({_READONLY} if read_only else set())
        self._address = urlsplit(url)
        self._timeout_s = timeout_s
        self._connecting = asyncio.Lock()
        self._client: AsyncClient | None = None
        self.database = unquote(self._address.path.strip("/")) or "default"

    async def insert(self, table: str, form: str, data: bytes, token: str = "") -> None:
        """Insert ``data``, which is in the ClickHouse format ``form``.

        A repeated insert with the same ``token`` has no effect, neither in the table nor in its materialized views.
        """
        settings = {"parallel_view_processing": "1"}
        if token:
            settings |= {
                "insert_deduplication_token": token,
                "deduplicate_blocks_in_dependent_materialized_views": "1",
            }
        client = await self._connected()
        # In chunks: the library copies a single bytes object to put the statement before it (20 % of throughput).
        await _classified(client.raw_insert(table, insert_block=_chunks(data), settings=settings, fmt=form))

    async def execute(self, statement: str, **params: Any) -> None:
        """Run a statement and ignore its result; ``{name:Type}`` in it is replaced with a parameter."""
        client = await self._connected()
        await _classified(client.raw_query(statement, parameters=params or None))

    async def query(self, statement: str, **params: Any) -> list[dict[str, Any]]:
        """Return the rows, each by column name; ``{name:Type}`` in the statement is replaced with a parameter."""
        client = await self._connected()
        response = await _classified(
            client.raw_query(
                statement,
                parameters=params or None,
                settings={"output_format_json_quote_64bit_integers": "0"} | self._settings,
                transport_settings={"X-ClickHouse-Format": "JSONEachRow"},
            ),
            self._temporary,
        )
        return [orjson.loads(line) for line in response.splitlines()]

    async def create_database(self) -> None:
        """Create the database of the URL if it does not exist."""
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
        # Imported here: the import takes 0.2 s, and most processes never connect to ClickHouse.
        from clickhouse_connect import get_async_client  # noqa: PLC0415

        address = self._address
        tls = parameters(address.geturl())
        client = await get_async_client(
            interface=address.scheme,
            host=address.hostname,
            port=address.port or (8443 if address.scheme == "https" else 8123),
            username=unquote(address.username) if address.username else None,
            password=unquote(address.password or ""),
            ca_cert=tls.get("ca_cert"),
            client_cert=tls.get("client_cert"),
            client_cert_key=tls.get("client_cert_key"),
            compress=False,
            connect_timeout=3,
            send_receive_timeout=self._timeout_s,
            query_retries=0,  # the caller retries, with backoff
            keepalive_timeout=_KEEPALIVE_S,
            autogenerate_session_id=False,
            show_clickhouse_errors=True,
        )
        client.database = self.database  # set after connecting: the database may not exist yet
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


async def _classified(call: Awaitable[Result], temporary: Collection[int] = _TEMPORARY) -> Result:
    from clickhouse_connect.driver.exceptions import DatabaseError, ProgrammingError  # noqa: PLC0415 - see above

    try:
        return await call
    except ProgrammingError:
        raise  # the library is used in a wrong way: a bug
    except DatabaseError as error:
        code = error.code
        if code is None:  # no response, or the response of a proxy
            raise DependencyUnavailable("ClickHouse", type(error.__cause__ or error).__name__) from error
        if code in temporary:
            raise DependencyUnavailable("ClickHouse", f"code {code}") from error
        raise ClickHouseError(code, _text(str(error))) from error


def _text(message: str) -> str:
    """Return the server's error message without the text that the library adds."""
    return (
        message.partition("server response: ")[2].rpartition(" (for url ")[0][:_ERROR_CHARS] or message[:_ERROR_CHARS]
    )
