"""No secret of a running stack is in a log, in ``status``, in the arguments of a process or in the text of an error."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import stat
import subprocess
import sys
from base64 import b64encode
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest

from infra.settings import Settings, child_environment
from local.state import read_stack
from tests.conftest import Stack
from tests.integration.conftest import World

pytestmark = pytest.mark.integration
_IN_URL = re.compile(r"://[^/@\s]*:([^/@\s]+)@")
_WRONG = "ls_" + "a" * 12 + "_" + "B" * 43


def secrets_of(home: Path) -> set[str]:
    """Return every secret of a state folder: its secret files, and passwords and tokens in its settings."""
    found = {file.read_text("utf-8").strip() for file in home.glob("*.secret")}
    for line in (home / "stack.env").read_text("utf-8").splitlines():
        name, _, value = line.partition("=")
        found |= set(_IN_URL.findall(value))
        if name.endswith(("TOKEN", "API_KEY", "PASSWORD", "SECRET")):
            found.add(value)
    assert len(found) >= 7
    assert min(map(len, found)) >= 16
    return found | {b64encode(f"{secret}:".encode()).decode()[:-4] for secret in found}


def leaked(secrets: set[str], text: str) -> int:
    return sum(secret in text for secret in secrets)


async def test_no_secret_is_shown(world: World, pipeline: Stack) -> None:
    secrets = secrets_of(world.home)
    key = Settings.load({"LEADSTREAM_HOME": str(world.home)}).api_key
    assert key is not None
    url, own = world.places["api"]["url"], key.get_secret_value()
    texts = []
    for path in ("/v1/events", "/v1/schemas/nothing", "/nothing", f"/v1/events?key={own}", f"/v1/errors/{own}"):
        for headers in (
            world.api_headers,
            {"X-Api-Key": own},
            {"Authorization": f"Bearer {own}x"},
            {"Authorization": f"Basic {own}"},
            {"Authorization": f"Bearer {_WRONG}"},
            {"Content-Type": "text/plain"},
        ):
            for method in ("GET", "POST"):
                response = await world.http.request(method, url + path, headers=headers, content=quote(own).encode())
                texts.append(response.text + str(response.headers))
    assert not [text for text in texts if leaked(secrets, text)]

    for words in (("status",), ("status", "--json"), ("keys", "list", "--all", "--json"), ("lag", "--json")):
        assert not leaked(secrets, await world.cli(*words)), words
    dsn = re.sub(r":[0-9]+/", ":1/", pipeline.dsn)
    for name, value, words in (
        ("LEADSTREAM_DATABASE_URL", dsn, ("keys", "list")),
        ("LEADSTREAM_DATABASE_URL", pipeline.dsn.replace("postgresql", "postgrsql"), ("keys", "list")),
        ("LEADSTREAM_CLICKHOUSE_URL", pipeline.clickhouse_url.replace("http", "htp"), ("query", "SELECT 1")),
        ("LEADSTREAM_API_KEYS", own, ("keys", "list")),
    ):
        failed = await failing(world, {name: value}, *words)
        assert failed, words
        assert not leaked(secrets, failed), words

    running = [psutil.Process(each["pid"]) for each in read_stack(world.home)["processes"]]
    for process in (*running, *(child for each in running for child in each.children(recursive=True))):
        assert not leaked(secrets, "\0".join(process.cmdline())), process.name()
    logs = [*(world.home / "logs").iterdir(), world.home / "supervisor.log"]
    assert len(logs) > len(running)
    for file in logs:
        assert not leaked(secrets, file.read_text("utf-8", errors="replace")), file.name


def test_only_the_owner_can_read_the_secrets(pipeline: Stack) -> None:
    secrets = {secret.encode() for secret in secrets_of(pipeline.home)}
    for file in pipeline.home.iterdir():
        if file.is_file() and any(secret in file.read_bytes() for secret in secrets):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name


async def failing(world: World, changes: dict[str, str], *words: str) -> str:
    """Run a command that fails, and return all that it prints."""

    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli", *words),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=child_environment({"LEADSTREAM_HOME": str(world.home)} | changes, inherit=False),
    )
    out, _ = await process.communicate()
    assert process.returncode
    return out.decode()


def test_the_key_of_the_stack_is_shown_on_a_terminal_only(pipeline: Stack) -> None:
    secret = (pipeline.home / "api.secret").read_text("utf-8").strip()
    shown: dict[bool, str] = {}
    for terminal in (True, False):
        shown[terminal] = up_output(pipeline.home, terminal=terminal)
    assert secret in shown[True]
    assert secret not in shown[False]
    assert "api.secret" in shown[False]


def up_output(home: Path, *, terminal: bool) -> str:
    """Return what ``leadstream up`` prints of a stack that runs."""

    master, slave = pty.openpty() if terminal else os.pipe()
    target = slave
    subprocess.run(
        [sys.executable, "-m", "cli", "up"],
        env=child_environment({"LEADSTREAM_HOME": str(home), "COLUMNS": "300"}, inherit=False),
        stdout=subprocess.DEVNULL,
        stderr=target,
        timeout=60,
        check=True,
    )
    os.close(target)
    try:
        return os.read(master, 100_000).decode()
    except OSError:
        return ""
    finally:
        os.close(master)
