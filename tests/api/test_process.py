"""``python -m api`` as a process."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.postgres.keys_table import KeysTable
from infra.postgres.pool import close, connect
from infra.settings import child_environment
from tests.conftest import eventually

pytestmark = pytest.mark.integration
LINE = {"type": "form_submitted", "envelope": {"tenant": "acme"}, "identifiers": {"email": "ada@example.com"}}


async def test_it_logs_its_port_accepts_ndjson_from_curl_and_stops_at_sigterm(running: Any, tmp_path: Path) -> None:
    async with running() as (process, url, key):
        lines = tmp_path / "events.ndjson"
        lines.write_text("\n".join([json.dumps(LINE)] * 3))
        header = "Content-Type: application/x-ndjson"
        command = ["curl", "-sS", "-u", f"{key}:", "-H", header, "--data-binary", f"@{lines}", f"{url}/v1/events"]
        curl = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        answer = json.loads((await curl.communicate())[0])
        assert (curl.returncode, answer["accepted"]) == (0, 3)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            assert await process.wait() == 0


async def statuses(urls: list[str], key: str) -> set[int]:
    async with httpx.AsyncClient(trust_env=False) as http:
        answers = [await http.post(f"{url}/v1/validate", json=LINE, headers={"x-api-key": key}) for url in urls]
    return {answer.status_code for answer in answers}


async def test_a_revoked_key_is_refused_by_every_instance_within_5_seconds(running: Any, stack: Any) -> None:
    async with AsyncExitStack() as exits:
        urls = [(await exits.enter_async_context(running()))[1] for _ in range(2)]
        pool = await connect(stack.settings.database_url, size=1, application="test")
        exits.push_async_callback(close, pool)
        keys = KeysTable(pool)
        key_id, key = await keys.create("acme", ["ingest"])
        assert await statuses(urls, key) == {200}  # at once: it is looked up

        async def remembered() -> bool:
            await statuses(urls, key)
            return any(each["id"] == key_id and each["last_used"] for each in await keys.list(every=False))

        await eventually(remembered)  # only the use of a key in memory is stored
        await keys.revoke(key_id)

        async def refused() -> bool:
            return await statuses(urls, key) == {401}

        await eventually(refused, timeout_s=5)


async def test_produce_sends_the_key_and_names_a_missing_one(running: Any, tmp_path: Path) -> None:
    lines = tmp_path / "events.ndjson"
    lines.write_text(json.dumps(LINE))
    async with running() as (_, url, key):
        for changes, code in (({"LEADSTREAM_API_KEY": key}, 0), ({}, 1)):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "cli", "produce", str(lines), "--url", url),
                env=child_environment({"LEADSTREAM_HOME": str(tmp_path / "none")} | changes, inherit=False),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            _, errors = await process.communicate()
            assert process.returncode == code, errors
            assert (b"LEADSTREAM_API_KEY" in errors) == bool(code)
            assert b"Traceback" not in errors
            assert key.encode() not in errors
