"""A new tenant's topic is created while the process runs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from infra.kafka.client import admin, metadata
from infra.runtime import Stop
from operations.tenant_topics import keep_topics
from tests.conftest import eventually

pytestmark = pytest.mark.integration


async def test_the_topic_of_a_new_tenant_is_created(stack: Any, tmp_path: Path, unique: str) -> None:
    stop, client = Stop(), admin(stack.settings, "test")
    (tmp_path / "default.yaml").touch()
    (tmp_path / f"{unique}-1.yaml").touch()
    running = asyncio.create_task(keep_topics(stack.settings, tmp_path, stop))

    async def topics() -> set[str]:
        found = await asyncio.to_thread(lambda: metadata(client, timeout_s=10).topics)
        return {name for name in found if unique in name}

    async def exist(*names: str) -> bool:
        return await topics() == {f"leads.received.{unique}-{name}" for name in names}

    await eventually(lambda: exist("1"))
    (tmp_path / f"{unique}-2.yaml").touch()
    await eventually(lambda: exist("1", "2"))
    (tmp_path / f"{unique}-1.yaml").unlink()
    stop.request()
    await running
    assert await exist("1", "2")  # no topic is deleted
