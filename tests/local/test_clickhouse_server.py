"""The ClickHouse server over chDB: stock clients, unchanged data, settings of one request, crashes, one process."""

# ruff: noqa: S608 - the tests choose the table names
from __future__ import annotations

import asyncio
import gzip
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import clickhouse_connect
import fastavro
import httpx
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError

from infra.clickhouse.client import ClickHouse
from local.clickhouse_access import USER
from local.ports import free_port, http_ready
from tests.conftest import eventually

pytestmark = pytest.mark.integration

PASSWORD = "p:ü %2F'\"\\"
_NEWLINES = {"type": "record", "name": "r", "fields": [{"name": "n", "type": "int"}, {"name": "b", "type": "bytes"}]}


class Server:
    """One server process with its data folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.port = free_port()
        self.password_file = path.with_name("password")
        self.password_file.write_text(PASSWORD, "utf-8")
        self.reader_file = path.with_name("reader-password")
        self.reader_file.write_text("may-only-read", "utf-8")
        address = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=address, auth=(USER, PASSWORD), timeout=60, trust_env=False)
        self.process: subprocess.Popen[bytes] | None = None

    def command(self, port: int) -> list[str]:
        options = ["--path", str(self.path), "--port", str(port), "--password-file", str(self.password_file)]
        options += ["--reader-password-file", str(self.reader_file)]
        return [sys.executable, "-m", "local.clickhouse_server", *options]

    async def start(self) -> None:
        self.process = subprocess.Popen(self.command(self.port))  # noqa: ASYNC220 - Popen does not wait
        await eventually(lambda: http_ready(self.port, "/ping"))

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(60)

    def execute(self, statement: str | bytes, **params: str) -> str:
        response = self.http.post("/", params=params, content=statement)
        assert response.status_code == 200, response.text
        return response.text


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("clickhouse") / "data")
    asyncio.run(running.start())
    yield running
    running.http.close()
    assert running.stop() in (0, -signal.SIGTERM)


@pytest.fixture
def table(server: Server, unique: str) -> Callable[..., str]:
    made: list[str] = []

    def make(columns: str, engine: str = "MergeTree ORDER BY tuple()") -> str:
        made.append(f"t_{unique}_{len(made)}")
        server.execute(f"CREATE TABLE {made[-1]} ({columns}) ENGINE = {engine}")
        return made[-1]

    return make


def avro(rows: list[dict[str, Any]], codec: str = "null") -> bytes:
    out = BytesIO()
    fastavro.writer(out, _NEWLINES, rows, codec=codec)
    return out.getvalue()


# -- stock clients ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [True, False, "gzip", "zstd", "lz4"])
def test_clickhouse_connect_writes_and_reads(server: Server, table: Callable[..., str], compress: Any) -> None:
    name = table(
        "id UInt64, name String, at DateTime64(6, 'UTC'), tags Map(String, Array(Int32)), score Nullable(Float64)"
    )
    client = clickhouse_connect.get_client(
        host="127.0.0.1", port=server.port, username=USER, password=PASSWORD, compress=compress
    )
    try:
        rows = [[n, "zoë\n\n" * 30, n * 1_000_000, {"a": [n, -n]}, None if n % 2 else n / 3] for n in range(3000)]
        client.insert(name, rows, column_names=["id", "name", "at", "tags", "score"])
        found = client.query(f"SELECT id, name, toUnixTimestamp64Micro(at), tags, score FROM {name} ORDER BY id")
        assert [list(row) for row in found.result_rows] == rows
        picked = client.query(f"SELECT name FROM {name} WHERE id = {{id:UInt64}}", parameters={"id": 7})
        assert picked.result_rows == [("zoë\n\n" * 30,)]
        assert client.command(f"SELECT count() FROM {name}") == 3000
        with pytest.raises(DatabaseError, match="60"):
            client.query("SELECT * FROM nowhere")
    finally:
        client.close()


async def test_clickhouse_connect_async_runs_many_at_once(server: Server, table: Callable[..., str]) -> None:
    name = table("id UInt64")
    client = await clickhouse_connect.get_async_client(
        host="127.0.0.1", port=server.port, username=USER, password=PASSWORD
    )
    try:
        await asyncio.gather(*(client.insert(name, [[n]], column_names=["id"]) for n in range(30)))
        answers = await asyncio.gather(*(client.query(f"SELECT count() FROM {name} WHERE id < {n}") for n in range(30)))
        assert [answer.result_rows[0][0] for answer in answers] == list(range(30))
    finally:
        await client.close()


# -- the HTTP interface -----------------------------------------------------------------------------------------------


def test_gzip_is_supported_in_both_directions(server: Server, table: Callable[..., str]) -> None:
    name = table("n UInt64")
    data = "\n".join(map(str, range(5000))).encode()
    params = {"query": f"INSERT INTO {name} FORMAT TSV"}
    sent = server.http.post("/", params=params, content=gzip.compress(data), headers={"Content-Encoding": "gzip"})
    assert sent.status_code == 200, sent.text
    query = {"query": f"SELECT n FROM {name} ORDER BY n", "enable_http_compression": "1"}
    answer = server.http.get("/", params=query, headers={"Accept-Encoding": "gzip"})
    assert answer.headers["Content-Encoding"] == "gzip"
    assert answer.content == data + b"\n"
    plain = server.http.get("/", params={"query": f"SELECT n FROM {name} ORDER BY n"})
    assert "Content-Encoding" not in plain.headers
    assert plain.content == data + b"\n"
    broken = server.http.post("/", params=params, content=b"not gzip", headers={"Content-Encoding": "gzip"})
    assert broken.status_code == 400


@pytest.mark.parametrize(
    ("statement", "status", "code"),
    [
        ("SELEC 1", 500, "62"),
        ("SELECT * FROM nowhere", 404, "60"),
        ("SELECT nofunction(1)", 404, "46"),
        ("SELECT toUUID('x')", 500, "376"),
        ("INSERT INTO nowhere FORMAT Avro\nObj", 404, "60"),
        ("SELECT throwIf(1)", 500, "395"),
    ],
)
def test_an_error_has_a_status_and_a_code(server: Server, statement: str, status: int, code: str) -> None:
    for _ in range(10):  # more than the number of connections: each must be usable afterwards
        answer = server.http.post("/", content=statement)
        assert (answer.status_code, answer.headers["X-ClickHouse-Exception-Code"]) == (status, code), answer.text
        assert f"Code: {code}." in answer.text
    assert server.execute("SELECT 1") == "1\n"


def test_a_setting_applies_to_one_request(server: Server) -> None:
    setting = "SELECT value, changed FROM system.settings WHERE name = 'max_block_size' FORMAT TSV"
    before = server.execute(setting)
    for _ in range(10):
        assert server.execute(setting, max_block_size="1234") == "1234\t1\n"
        assert server.execute(setting) == before
        server.http.post("/", params={"max_block_size": "77"}, content="SELECT toUUID('x')")
        assert server.execute(setting) == before
        wrong = server.http.post("/", params={"max_block_size": "78", "no_such_setting": "1"}, content="SELECT 1")
        assert (wrong.status_code, wrong.headers["X-ClickHouse-Exception-Code"]) == (500, "115")
        assert server.execute(setting) == before


def test_a_database_applies_to_one_request(server: Server, unique: str) -> None:
    server.execute(f"CREATE DATABASE d_{unique}")
    for _ in range(10):
        assert server.execute("SELECT currentDatabase()", database=f"d_{unique}") == f"d_{unique}\n"
        assert server.execute("SELECT currentDatabase()") == "default\n"
        missing = server.http.post("/", params={"database": "nowhere"}, content="SELECT 1")
        assert missing.headers["X-ClickHouse-Exception-Code"] == "81"
    server.execute(f"DROP DATABASE d_{unique}")
    assert server.execute("SELECT 1") == "1\n"


@pytest.mark.parametrize("value", ["'); DROP TABLE x; --", "a\\b\\n", "tab\tnewline\nreturn\r", "zoë {v:String}", "\\"])
async def test_parameters_are_never_part_of_the_statement(server: Server, value: str) -> None:
    async with ClickHouse(f"http://{USER}:{quote(PASSWORD)}@127.0.0.1:{server.port}/default") as client:
        assert await client.query("SELECT {v:String} AS v", v=value) == [{"v": value}]


# -- the data ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["url", "body"])
@pytest.mark.parametrize("codec", ["null", "deflate"])
def test_avro_data_is_unchanged(server: Server, table: Callable[..., str], where: str, codec: str) -> None:
    name = table("n Int32, b String")
    every = bytes(range(256))
    values = [
        b"\n\n",
        b"",
        b"\n\n\n;\n\n",
        every,
        every[::-1],
        b"\r\n\r\n",
        b"FORMAT Avro\n\n",
        b"';--\n",
        b"\n" * 5000,
    ]
    rows = [{"n": n, "b": value} for n, value in enumerate(values)]
    head = f"INSERT INTO {name} FORMAT Avro"
    if where == "url":
        server.execute(avro(rows, codec), query=head)
    else:
        server.execute(head.encode() + b"\n" + avro(rows, codec))
    found = server.execute(f"SELECT hex(b) FROM {name} ORDER BY n").split("\n")
    assert [bytes.fromhex(line) for line in found[:-1]] == values


def test_a_truncated_avro_container_inserts_no_row(server: Server, table: Callable[..., str]) -> None:
    name = table("n Int32, b String")
    whole = avro([{"n": n, "b": b"x" * 50} for n in range(100)])
    for length in (0, 3, 30, len(whole) // 2, len(whole) - 40):
        answer = server.http.post("/", params={"query": f"INSERT INTO {name} FORMAT Avro"}, content=whole[:length])
        assert length == 0 or answer.status_code == 500, (length, answer.text)
    assert server.execute(f"SELECT count() FROM {name}") == "0\n"


def test_a_row_that_a_view_rejects_is_an_error(server: Server, table: Callable[..., str]) -> None:
    # Without the error the row would be acknowledged and lost.
    landing, store = table("n Int32, b String", "Null"), table("id UUID")
    server.execute(f"CREATE MATERIALIZED VIEW {landing}_v TO {store} AS SELECT toUUID(b) AS id FROM {landing}")
    good = {"n": 1, "b": b"61f0c404-5cb3-11e7-907b-a6006ad3dba0"}
    params = {"query": f"INSERT INTO {landing} FORMAT Avro"}
    answer = server.http.post("/", params=params, content=avro([good, {"n": 2, "b": b"no uuid"}]))
    assert (answer.status_code, answer.headers["X-ClickHouse-Exception-Code"]) == (500, "376")
    assert server.execute(f"SELECT count() FROM {store}") == "0\n"
    server.execute(avro([good]), **params)
    assert server.execute(f"SELECT count() FROM {store}") == "1\n"


def test_a_repeated_deduplication_token_changes_nothing_in_views(server: Server, table: Callable[..., str]) -> None:
    landing = table("n Int32, b String", "Null")
    store = table("n Int32", "MergeTree ORDER BY n SETTINGS non_replicated_deduplication_window = 10")
    server.execute(f"CREATE MATERIALIZED VIEW {landing}_v TO {store} AS SELECT n FROM {landing}")
    params = {"query": f"INSERT INTO {landing} FORMAT Avro", "deduplicate_blocks_in_dependent_materialized_views": "1"}
    for token in ("a", "a", "b", "a", "b"):
        server.execute(avro([{"n": 1, "b": b""}]), insert_deduplication_token=token, **params)
    assert server.execute(f"SELECT count() FROM {store}") == "2\n"


# -- concurrency and crashes -------------------------------------------------------------------------------------------


async def test_inserts_do_not_wait_for_a_long_query(server: Server, table: Callable[..., str]) -> None:
    name = table("n Int32, b String")
    address = f"http://127.0.0.1:{server.port}"
    async with httpx.AsyncClient(base_url=address, auth=(USER, PASSWORD), timeout=120, trust_env=False) as http:
        slow = "SELECT count() FROM numbers(1000000000000) WHERE NOT ignore(sipHash64(number))"
        slow += " SETTINGS max_execution_time=8"
        long = [asyncio.ensure_future(http.post("/", content=slow)) for _ in range(4)]  # all connections for queries

        async def insert(n: int) -> int:
            query = {"query": f"INSERT INTO {name} FORMAT Avro"}
            return (await http.post("/", params=query, content=avro([{"n": n, "b": b""}]))).status_code

        assert await asyncio.gather(*(insert(n) for n in range(12))) == [200] * 12
        assert not any(each.done() for each in long)
        for each in long:
            assert (await each).headers["X-ClickHouse-Exception-Code"] == "159"
        answer = await http.post("/", content=f"SELECT count() FROM {name}")
        assert answer.text == "12\n"


async def test_acknowledged_data_survives_a_kill(tmp_path: Path) -> None:
    server = Server(tmp_path / "data")
    await server.start()
    try:
        server.execute("CREATE TABLE t (n Int32, b String) ENGINE = MergeTree ORDER BY n")
        for number in range(3):
            server.execute(
                avro([{"n": number * 100 + n, "b": b""} for n in range(100)]), query="INSERT INTO t FORMAT Avro"
            )
            server.stop(signal.SIGKILL)
            await server.start()
            assert (
                server.execute("SELECT count(), uniqExact(n) FROM t") == f"{number * 100 + 100}\t{number * 100 + 100}\n"
            )
    finally:
        server.http.close()
        server.stop()


def test_a_second_process_on_the_same_folder_exits_with_an_error(server: Server) -> None:
    second = subprocess.run(server.command(free_port()), capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 1
    assert "another process already uses" in second.stderr
    assert str(server.path) in second.stderr
    assert server.execute("SELECT 1") == "1\n"
