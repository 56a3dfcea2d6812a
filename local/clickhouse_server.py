"""An HTTP server that speaks ClickHouse's HTTP interface over chDB, the ClickHouse engine in a wheel.

``python -m local.clickhouse_server --path DIR --port N --password-file FILE [--reader-password-file FILE]``. curl,
leadstream's own client and clickhouse-connect (sync and async) work with it as with clickhouse-server. Its users are
``leadstream`` and ``reader``, who may only read; only ``/ping`` needs no password. It listens on 127.0.0.1 by default.

- The statement is in the URL, or in the body, or its start is in the URL and its data in the body. The data of
  ``INSERT … FORMAT Avro`` reaches the engine unchanged.
- Settings of a request apply to that request only.
- Inserts and queries have separate connections, so a long query does not delay an insert.

Guarantees: one process per data folder; acknowledged data is in the file system before the response is sent.

Crash: acknowledged data survives SIGKILL.

Source: ClickHouse documentation, "HTTP Interface".
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import gzip
import os
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import IO, Any

import orjson
import uvloop
from chdb.state.sqlitelike import Connection
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from infra import web
from infra.runtime import until_signalled
from local.clickhouse_access import READER, USER, reads_only, refusal, uses_local_files
from local.clickhouse_bodies import BodyError, decoded_body

_READERS = 4
_WRITERS = 3
_RESTRICTED = 2  # connections that may only read
_COMPRESS_FROM = 1024
# Parameters of the HTTP interface; every other parameter of a request is a setting.
_INTERFACE_PARAMETERS = frozenset(
    {
        *("query", "database", "default_format", "enable_http_compression", "compress", "decompress", "user"),
        *("password", "session_id", "session_timeout", "session_check", "quota_key", "query_id", "role"),
        *("client_protocol_version", "wait_end_of_query", "buffer_size", "http_headers_progress_interval_ms"),
        *("send_progress_in_http_headers", "stacktrace", "cancel_http_readonly_queries_on_client_close"),
        "readonly",  # chooses the connection: on it, the setting cannot be changed back
    }
)
_ERROR_CODE = re.compile(r"Code: (\d+)\.")
_NOT_FOUND = frozenset({46, 60, 81})  # unknown function, table, database: status 404; other errors are 500
_INSERT = re.compile(rb"\s*(?:--[^\n]*\n|/\*.*?\*/|\s)*insert\b", re.IGNORECASE | re.DOTALL)
# INSERT INTO [TABLE] table [(columns)] [SETTINGS …] FORMAT name, then a line break and the data.
_INSERT_WITH_DATA = re.compile(
    rb"\s*(insert\s+into\s+(?:table\s+)?[`\"\w.]+\s*(?:\([^)]*\))?\s*(?:settings\s+[^\n]*?)?)\s*"
    rb"\bformat\s+(\w+)[ \t]*\r?\n",
    re.IGNORECASE,
)
_SETTING_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class _Engine:
    """Connections to one data folder: pools for inserts, for those who only read, and for the rest.

    Each connection runs one statement at a time.
    """

    def __init__(self, path: Path) -> None:
        # In memory when possible: data that was not acknowledged need not survive a crash.
        shared_memory = "/dev/shm"  # noqa: S108 - the files in it are created with mode 600
        self._temporary_folder = shared_memory if os.access(shared_memory, os.W_OK) else None
        self._connections = [Connection(str(path)) for _ in range(_READERS + _WRITERS + _RESTRICTED)]
        self._databases = dict.fromkeys(map(id, self._connections), "default")
        self._readers: asyncio.Queue[Connection] = asyncio.Queue()
        self._writers: asyncio.Queue[Connection] = asyncio.Queue()
        self._restricted: asyncio.Queue[Connection] = asyncio.Queue()
        for index, connection in enumerate(self._connections):
            if index >= _READERS + _WRITERS:
                connection.query("SET readonly = 1")
                self._restricted.put_nowait(connection)
            else:
                (self._writers if index < _WRITERS else self._readers).put_nowait(connection)

    def temporary_file(self) -> IO[bytes]:
        """Return a new file for the data of an insert; closing it deletes it."""
        return tempfile.NamedTemporaryFile(dir=self._temporary_folder)

    async def run(
        self,
        statement: bytes,
        output_format: str,
        database: str,
        settings: dict[str, str],
        params: dict[str, Any],
        data: IO[bytes] | None = None,
        *,
        read_only: bool = False,
    ) -> bytes:
        """Run one statement and return its output in ``output_format``; close ``data``. Raises the engine's error.

        ``read_only``: a statement that is not a query is an error.

        A cancelled call does not stop a statement that has started; its connection is reused when the statement ends.
        """
        pool = self._writers if _INSERT.match(statement) else self._readers
        if read_only:
            pool, settings = self._restricted, {}  # it refuses settings, and those of our client do not matter
        try:
            connection = await pool.get()
        except asyncio.CancelledError:  # the client disconnected before the statement started
            if data is not None:
                data.close()
            raise
        work = asyncio.ensure_future(
            asyncio.to_thread(self._run, connection, statement, output_format, database, settings, params)
        )

        def release(_: object) -> None:
            # Not in a `finally` of this call: it may be cancelled while the engine still runs the statement.
            pool.put_nowait(connection)
            if data is not None:
                data.close()

        work.add_done_callback(release)
        return await asyncio.shield(work)

    def _run(
        self,
        connection: Connection,
        statement: bytes,
        output_format: str,
        database: str,
        settings: dict[str, str],
        params: dict[str, Any],
    ) -> bytes:
        if self._databases[id(connection)] != database:
            connection.query(f"USE `{database}`")
            self._databases[id(connection)] = database
        if settings:
            connection.query("SET " + ", ".join(f"{name} = {_quoted(value)}" for name, value in settings.items()))
        try:
            result = connection.query(statement, output_format, params=params or None)
            return result.bytes() if hasattr(result, "bytes") else bytes(result or b"")
        finally:
            if settings:
                connection.query("SET " + ", ".join(f"{name} = DEFAULT" for name in settings))

    def close(self) -> None:
        """Close all connections."""
        for connection in self._connections:
            connection.close()


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def app(path: Path, passwords: Mapping[str, str]) -> Starlette:
    """Return the server of the data folder ``path`` as an ASGI application; ``passwords``: of its users, by name."""

    @contextlib.asynccontextmanager
    async def lifespan(application: Starlette) -> AsyncIterator[None]:
        application.state.engine = _Engine(path)
        yield
        application.state.engine.close()

    methods = ["GET", "POST", "HEAD"]
    routes = [Route("/ping", _ping, methods=["GET", "HEAD"]), Route("/", _query, methods=methods)]
    application = Starlette(routes=routes, lifespan=lifespan)
    application.state.passwords = passwords
    return application


async def _ping(_: Request) -> Response:
    return Response("Ok.\n")


async def _query(request: Request) -> Response:
    if refused := refusal(request, request.app.state.passwords):
        return refused
    parameters = dict(request.query_params)
    engine: _Engine = request.app.state.engine
    try:
        statement, data = await _statement_and_data(request, parameters.get("query", "").encode(), engine)
    except BodyError as error:
        return Response(f"the body of the request cannot be decompressed: {error}\n", 400)
    if not statement.strip():
        return Response("Ok.\n")
    read_only = reads_only(request)
    if read_only and (data is not None or uses_local_files(statement)):
        if data is not None:
            data.close()
        return _error_response("Code: 164. DB::Exception: reader: Cannot execute query in readonly mode. (READONLY)")
    output_format = request.headers.get("x-clickhouse-format") or parameters.get("default_format") or "TabSeparated"
    database = request.headers.get("x-clickhouse-database") or parameters.get("database") or "default"
    settings = {
        k: v
        for k, v in parameters.items()
        if k not in _INTERFACE_PARAMETERS and not k.startswith("param_") and _SETTING_NAME.fullmatch(k)
    }
    params = {k.removeprefix("param_"): v for k, v in parameters.items() if k.startswith("param_")}
    try:
        output = await engine.run(statement, output_format, database, settings, params, data, read_only=read_only)
    except Exception as error:  # noqa: BLE001 - every error of the engine is one type, with its code in the text
        return _error_response(str(error))
    headers = {
        "X-ClickHouse-Format": output_format,
        "X-ClickHouse-Timezone": "UTC",
        "X-ClickHouse-Summary": orjson.dumps({"read_rows": "0", "written_rows": "0", "result_rows": "0"}).decode(),
        "Content-Type": "text/plain; charset=UTF-8",
    }
    gzip_accepted = (
        "gzip" in request.headers.get("accept-encoding", "") and parameters.get("enable_http_compression") == "1"
    )
    if gzip_accepted and len(output) > _COMPRESS_FROM:
        output = gzip.compress(output, 1)
        headers["Content-Encoding"] = "gzip"
    return Response(output, 200, headers)


async def _statement_and_data(request: Request, head: bytes, engine: _Engine) -> tuple[bytes, IO[bytes] | None]:
    """Return the statement of a request and, for an insert with data, the data as a file that the statement names.

    The data is not part of the statement, because the engine ends inline data at the first blank line. It is a file,
    because chDB's ``send_insert`` reports no error when a materialized view rejects the data.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding == "identity" and (insert := _INSERT_WITH_DATA.match(head + b"\n")):
        data = engine.temporary_file()  # streamed to the file: an insert may be large
        try:
            async for chunk in request.stream():
                data.write(chunk)
        except BaseException:
            data.close()
            raise
        return _from_file(insert, data), data
    body = decoded_body(await request.body(), encoding)
    statement = head + b"\n" + body if head and body else head or body
    if insert := _INSERT_WITH_DATA.match(statement):
        data = engine.temporary_file()
        data.write(memoryview(statement)[insert.end() :])
        return _from_file(insert, data), data
    return statement, None


def _from_file(insert: re.Match[bytes], data: IO[bytes]) -> bytes:
    data.flush()
    return b"%s FROM INFILE %s FORMAT %s" % (insert.group(1), _quoted(data.name).encode(), insert.group(2))


def _error_response(text: str) -> Response:
    found = _ERROR_CODE.search(text)
    code = found.group(1) if found else "1002"
    status = 404 if int(code) in _NOT_FOUND else 500
    return Response(text.rstrip() + "\n", status, {"X-ClickHouse-Exception-Code": code})


def main() -> None:
    """Serve a data folder until SIGTERM; exit 1 when another process has locked it."""
    parser = argparse.ArgumentParser(prog="python -m local.clickhouse_server")
    parser.add_argument("--path", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--password-file", type=Path, required=True)
    parser.add_argument("--reader-password-file", type=Path)
    options = parser.parse_args()
    files = {USER: options.password_file, READER: options.reader_password_file}
    passwords = {user: file.read_text("utf-8").strip() for user, file in files.items() if file is not None}
    options.path.mkdir(parents=True, exist_ok=True)
    with options.path.with_name(options.path.name + ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.stderr.write(f"another process already uses {options.path}: stop it, or set another --path\n")
            raise SystemExit(1) from None
        listener = web.listen(options.host, options.port)
        uvloop.run(until_signalled(web.serve(app(options.path, passwords), listener, lifespan=True)))


if __name__ == "__main__":
    main()
