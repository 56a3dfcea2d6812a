"""The API with a real broker: in this process, with httpx over ASGI, and as a process of its own."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from confluent_kafka import Message, TopicPartition

from api.app import build
from infra.kafka import client as kafka
from infra.kafka.producer import Deliverer
from infra.postgres.keys_table import KeysTable
from infra.postgres.pool import close, connect
from infra.settings import Settings, child_environment
from operations import broker_topics
from tests.api.hostile import EVERYTHING, FixedKeys

OpenClient = Callable[..., Any]


@pytest.fixture
async def open_client(stack: Any) -> AsyncIterator[OpenClient]:
    """Return a function that opens a client of an API (with another broker, or with other settings)."""
    async with AsyncExitStack() as closing:

        async def at(bootstrap: str = "", *, timeout_s: float = 5, **settings: Any) -> httpx.AsyncClient:
            changed: Settings = stack.settings.model_copy(update=settings)
            changed = changed.model_copy(update={"kafka_bootstrap": bootstrap or changed.kafka_bootstrap})
            deliverer = Deliverer(changed, "test", timeout_s=timeout_s)
            closing.push_async_callback(deliverer.close)
            transport = httpx.ASGITransport(build(changed, deliverer, FixedKeys()), raise_app_exceptions=False)
            client = httpx.AsyncClient(transport=transport, base_url="http://api", headers=EVERYTHING)
            return await closing.enter_async_context(client)

        yield at


@pytest.fixture
async def client(stack: Any, open_client: OpenClient) -> httpx.AsyncClient:
    broker_topics.apply(stack.settings)
    opened: httpx.AsyncClient = await open_client()
    return opened


@pytest.fixture
def record_at(stack: Any) -> Callable[[dict[str, Any]], Message]:
    """Return a function that reads the record of an item of a response from the broker."""

    def read(item: dict[str, Any]) -> Message:
        consumer = kafka.reader(stack.settings, "test-reads-back")
        consumer.assign([TopicPartition(item["topic"], item["partition"], item["offset"])])
        messages = consumer.consume(1, 20)
        consumer.close()
        assert messages, "the record is not on the broker"
        assert messages[0].error() is None
        assert messages[0].offset() == item["offset"]
        return messages[0]

    return read


@pytest.fixture
def running(stack: Any, tmp_path: Path) -> Callable[[], Any]:
    """Return a context manager that runs ``python -m api`` on a free port and yields the process, its URL, a key."""
    return lambda: _running(stack, tmp_path)


@asynccontextmanager
async def _running(stack: Any, home: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, str, str]]:
    environment = {
        "LEADSTREAM_HOME": str(home),
        "LEADSTREAM_API_PORT": "0",
        "LEADSTREAM_KAFKA_BOOTSTRAP": stack.settings.kafka_bootstrap,
        "LEADSTREAM_DATABASE_URL": stack.settings.database_url,
    }
    broker_topics.apply(stack.settings)
    pool = await connect(stack.settings.database_url, size=1, application="test")
    key = (await KeysTable(pool).create("acme", ["ingest"]))[1]
    await close(pool)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "api", stdout=asyncio.subprocess.PIPE, env=child_environment(environment)
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            while (line := json.loads(await process.stdout.readline()))["event"] != "listening":
                pass
        yield process, f"http://127.0.0.1:{line['port']}", key
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
