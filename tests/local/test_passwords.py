"""The parts refuse everyone without their passwords, which stand in files of the owner only."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import httpx
import psutil
import pytest

from local.attached import AttachedStack
from local.ports import HOST, local_connection
from tests.local.conftest import processes_of
from tests.local.test_real import leadstream

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
PARTS = ("--parts", "postgres,clickhouse,redis")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "a path, with ü"


@pytest.fixture
def running(home: Path) -> Iterator[AttachedStack]:
    with AttachedStack(home, *PARTS) as stack:
        yield stack


def with_password(url: str, password: str) -> str:
    parts = urlsplit(url)
    user = f"{parts.username or ''}:{password}"
    return urlunsplit(parts._replace(netloc=f"{user}@{parts.hostname}:{parts.port}"))


async def redis_replies(port: int, *commands: str) -> list[bytes]:
    async with local_connection(port) as (reader, writer):
        writer.write("".join(f"{command}\r\n" for command in commands).encode())
        return [await reader.readline() for _ in commands]


async def assert_postgres(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    assert await connection.fetchval("SELECT current_user") == "leadstream"
    await connection.close()


async def test_each_part_accepts_its_password_and_refuses_every_other(running: AttachedStack) -> None:
    state = running.state
    dsn, url, redis = state["postgres"]["dsn"], state["clickhouse"]["url"], urlsplit(state["redis"]["url"])

    await assert_postgres(dsn)
    for wrong in ("wrong", ""):
        with pytest.raises((asyncpg.InvalidPasswordError, asyncpg.InterfaceError, asyncpg.PostgresError)):
            await asyncpg.connect(with_password(dsn, wrong), passfile="/nonexistent")

    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        base = url.rpartition("/")[0]
        assert (await http.get(f"{base}/?query=SELECT+1")).text == "1\n"
        for wrong in ("wrong", ""):
            refused = await http.get(f"{with_password(base, wrong)}/?query=SELECT+1")
            assert (refused.status_code, refused.headers["X-ClickHouse-Exception-Code"]) == (403, "516")

    assert redis.port is not None
    assert await redis_replies(redis.port, f"AUTH {redis.password}", "PING") == [b"+OK\r\n", b"+PONG\r\n"]
    for first in ("PING", "AUTH wrong"):
        assert all(reply.startswith(b"-") for reply in await redis_replies(redis.port, first, "PING"))


def test_passwords_are_in_private_files_only(running: AttachedStack) -> None:
    state = running.state
    urls = (state["postgres"]["dsn"], state["clickhouse"]["url"], state["redis"]["url"])
    passwords = {urlsplit(url).password or "" for url in urls}
    assert min(map(len, passwords)) >= 32
    assert len(passwords) == 3
    arguments = "\0".join("\0".join(process.cmdline()) for process in psutil.process_iter())
    assert not [password for password in passwords if password in arguments]
    for file in running.home.iterdir():
        if file.is_file() and any(password in file.read_text("utf-8") for password in passwords):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    shown = [leadstream(running.home, "status", *option).stdout for option in ((), ("--json",))]
    assert [text.count("***@") for text in shown] == [3, 3]
    assert not [password for password in passwords if password in "".join(shown)]
    for process in processes_of(running.home):
        with suppress(psutil.Error):
            if process.username() == "nobody":  # other processes of this user can read its environment
                assert not [name for name in process.environ() if name.startswith("LEADSTREAM_") and "_URL" in name]


async def test_a_cluster_without_a_password_gets_one_at_the_next_start(home: Path) -> None:
    with AttachedStack(home, *PARTS) as stack:
        connection = await asyncpg.connect(stack.state["postgres"]["dsn"])
        await connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        await connection.close()
    # As a stack of an earlier version has left it: no password anywhere.
    for name in ("postgres", "clickhouse", "redis"):
        (home / f"{name}.secret").unlink()
    rules = home / "postgres" / "pg_hba.conf"
    rules.write_text(f"host all all {HOST}/32 trust\n", "utf-8")
    with AttachedStack(home, *PARTS) as stack:
        dsn = stack.state["postgres"]["dsn"]
        connection = await asyncpg.connect(dsn)
        assert await connection.fetchval("SELECT answer FROM kept") == 42
        await connection.close()
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(with_password(dsn, "wrong"))


async def test_a_stack_that_was_killed_starts_again_with_its_passwords(home: Path) -> None:
    first = AttachedStack(home, *PARTS).start()
    state = first.state
    await asyncio.to_thread(psutil.Process(state["supervisor"]["pid"]).kill)
    with suppress(ProcessLookupError):
        await asyncio.to_thread(first.stop)
    with AttachedStack(home, *PARTS) as again:
        assert again.state["postgres"] == state["postgres"]
        await assert_postgres(again.state["postgres"]["dsn"])
