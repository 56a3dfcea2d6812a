"""``python -m api`` as a process."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import pytest

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
