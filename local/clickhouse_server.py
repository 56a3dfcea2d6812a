"""A small server that speaks ClickHouse's HTTP interface over chDB, the ClickHouse engine in a wheel.

``python -m local.clickhouse_server --path DIR --port N``. One process owns the folder. curl, our own client and
stock clickhouse-connect (sync and async) work against it as against clickhouse-server; it has no users and listens on
this machine only.

- The statement comes in the URL, in the body, or its head in the URL and its data in the body; the data of
  ``INSERT … FORMAT Avro`` goes to the engine byte by byte as it came.
- Settings of a request hold for that request: they are set on its connection and set back afterwards.
- A connection runs one statement at a time, several run side by side: inserts have connections of their own, so that
  they never wait behind an analyst.
- What was acknowledged survives SIGKILL: parts are in the file system before the answer.

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
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, Any

import cramjam
import orjson
import uvloop
from chdb.state.sqlitelike import Connection
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from infra import web
from infra.runtime import until_signalled

_READERS = 4
_WRITERS = 3
_COMPRESS_FROM = 1024
# Parameters of the interface itself; every other parameter of a request is a setting.
_OWN = frozenset(
    {
        *("query", "database", "default_format", "enable_http_compression", "compress", "decompress", "user"),
        *("password", "session_id", "session_timeout", "session_check", "quota_key", "query_id", "role"),
        *("client_protocol_version", "wait_end_of_query", "buffer_size", "http_headers_progress_interval_ms"),
        *("send_progress_in_http_headers", "stacktrace", "cancel_http_readonly_queries_on_client_close"),
    }
)
_CODE = re.compile(r"Code: (\d+)\.")
_NOT_FOUND = frozenset({46, 60, 81, 36})  # unknown function, table, database; bad arguments stay 500 below
_INSERT = re.compile(rb"\s*(?:--[^\n]*\n|/\*.*?\*/|\s)*insert\b", re.IGNORECASE | re.DOTALL)
# INSERT [INTO] table [(columns)] [SETTINGS …] FORMAT name, and then the data.
_INLINE = re.compile(
    rb"\s*(insert\s+into\s+(?:table\s+)?[`\"\w.]+\s*(?:\([^)]*\))?\s*(?:settings\s+[^\n]*?)?)\s*"
    rb"\bformat\s+(\w+)[ \t]*\r?\n",
    re.IGNORECASE,
)
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class _Engine:
    """Connections to one folder, lent one statement at a time."""

    def __init__(self, path: Path) -> None:
        # In memory where the system has such a folder: what is in it need not survive anything.
        self._spool = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - a file nobody else can open
        self._everything = [Connection(str(path)) for _ in range(_READERS + _WRITERS)]
        self._databases = dict.fromkeys(map(id, self._everything), "default")
        self._readers: asyncio.Queue[Connection] = asyncio.Queue()
        self._writers: asyncio.Queue[Connection] = asyncio.Queue()
        for index, connection in enumerate(self._everything):
            (self._writers if index < _WRITERS else self._readers).put_nowait(connection)

    def spool(self) -> IO[bytes]:
        """Return a new file for the data of an insert; it is gone when it is closed."""
        return tempfile.NamedTemporaryFile(dir=self._spool)

    async def run(
        self,
        statement: bytes,
        form: str,
        database: str,
        settings: dict[str, str],
        params: dict[str, Any],
        data: IO[bytes] | None = None,
    ) -> bytes:
        """Run one statement and return its output in format ``form``; close ``data``. Raises the engine's error."""
        lane = self._writers if _INSERT.match(statement) else self._readers
        try:
            connection = await lane.get()
        except asyncio.CancelledError:  # whoever asked is gone, and nothing has begun
            if data is not None:
                data.close()
            raise
        work = asyncio.ensure_future(
            asyncio.to_thread(self._run, connection, statement, form, database, settings, params)
        )

        def done(_: object) -> None:
            # Not when this call ends: it may be cancelled while the engine is still at work.
            lane.put_nowait(connection)
            if data is not None:
                data.close()

        work.add_done_callback(done)
        return await asyncio.shield(work)

    def _run(
        self,
        connection: Connection,
        statement: bytes,
        form: str,
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
            result = connection.query(statement, form, params=params or None)
            return result.bytes() if hasattr(result, "bytes") else bytes(result or b"")
        finally:
            if settings:
                connection.query("SET " + ", ".join(f"{name} = DEFAULT" for name in settings))

    def close(self) -> None:
        """Close the folder."""
        for connection in self._everything:
            connection.close()


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def app(path: Path) -> Starlette:
    """Return the server over the folder ``path``."""

    @contextlib.asynccontextmanager
    async def lifespan(application: Starlette) -> AsyncIterator[None]:
        application.state.engine = _Engine(path)
        yield
        application.state.engine.close()

    methods = ["GET", "POST", "HEAD"]
    routes = [Route("/ping", _ping, methods=["GET", "HEAD"]), Route("/", _query, methods=methods)]
    return Starlette(routes=routes, lifespan=lifespan)


async def _ping(_: Request) -> Response:
    return Response("Ok.\n")


async def _query(request: Request) -> Response:
    asked = dict(request.query_params)
    engine: _Engine = request.app.state.engine
    try:
        statement, data = await _read(request, asked.get("query", "").encode(), engine)
    except _UnreadableError as error:
        return Response(f"the body cannot be decompressed: {error}\n", 400)
    if not statement.strip():
        return Response("Ok.\n")
    form = request.headers.get("x-clickhouse-format") or asked.get("default_format") or "TabSeparated"
    database = request.headers.get("x-clickhouse-database") or asked.get("database") or "default"
    settings = {k: v for k, v in asked.items() if k not in _OWN and not k.startswith("param_") and _WORD.fullmatch(k)}
    params = {k.removeprefix("param_"): v for k, v in asked.items() if k.startswith("param_")}
    try:
        output = await engine.run(statement, form, database, settings, params, data)
    except Exception as error:  # noqa: BLE001 - the engine's errors are one type with the code in the text
        return _failed(str(error))
    headers = {
        "X-ClickHouse-Format": form,
        "X-ClickHouse-Timezone": "UTC",
        "X-ClickHouse-Summary": orjson.dumps({"read_rows": "0", "written_rows": "0", "result_rows": "0"}).decode(),
        "Content-Type": "text/plain; charset=UTF-8",
    }
    wants = "gzip" in request.headers.get("accept-encoding", "") and asked.get("enable_http_compression") == "1"
    if wants and len(output) > _COMPRESS_FROM:
        output = gzip.compress(output, 1)
        headers["Content-Encoding"] = "gzip"
    return Response(output, 200, headers)


async def _read(request: Request, head: bytes, engine: _Engine) -> tuple[bytes, IO[bytes] | None]:
    """Return the statement of a request, and the data of an insert as a file that the statement names.

    Handed over apart: within a statement the engine would end the data at the first blank line. And as a file: chDB's
    send_insert keeps silent when a materialized view cannot take the data.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding == "identity" and (insert := _INLINE.match(head + b"\n")):
        data = engine.spool()  # straight from the wire: an insert may be large
        try:
            async for chunk in request.stream():
                data.write(chunk)
        except BaseException:
            data.close()
            raise
        return _from_file(insert, data), data
    body = _unpacked(await request.body(), encoding)
    statement = head + b"\n" + body if head and body else head or body
    if insert := _INLINE.match(statement):
        data = engine.spool()
        data.write(memoryview(statement)[insert.end() :])
        return _from_file(insert, data), data
    return statement, None


def _from_file(insert: re.Match[bytes], data: IO[bytes]) -> bytes:
    data.flush()
    return b"%s FROM INFILE %s FORMAT %s" % (insert.group(1), _quoted(data.name).encode(), insert.group(2))


class _UnreadableError(Exception):
    """A body is not what its Content-Encoding says."""


def _unpacked(body: bytes, encoding: str) -> bytes:
    try:
        return _decompressed(body, encoding)
    except Exception as error:
        raise _UnreadableError(str(error)) from error


def _decompressed(body: bytes, encoding: str) -> bytes:
    if encoding == "gzip":
        return gzip.decompress(body)
    if encoding == "lz4":
        return bytes(cramjam.lz4.decompress(body))
    if encoding == "zstd":
        return bytes(cramjam.zstd.decompress(body))
    if encoding in ("", "identity"):
        return body
    raise ValueError(f"unknown Content-Encoding {encoding}; gzip, lz4 and zstd are understood")


def _failed(text: str) -> Response:
    found = _CODE.search(text)
    code = found.group(1) if found else "1002"
    status = 404 if int(code) in _NOT_FOUND else 500
    return Response(text.rstrip() + "\n", status, {"X-ClickHouse-Exception-Code": code})


def main() -> None:
    """Serve a folder until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m local.clickhouse_server")
    parser.add_argument("--path", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    words = parser.parse_args()
    words.path.mkdir(parents=True, exist_ok=True)
    with words.path.with_name(words.path.name + ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.stderr.write(f"another process already owns {words.path}; one process at a time can\n")
            raise SystemExit(1) from None
        listener = web.listen(words.host, words.port)
        uvloop.run(until_signalled(web.serve(app(words.path), listener, lifespan=True)))


if __name__ == "__main__":
    main()
