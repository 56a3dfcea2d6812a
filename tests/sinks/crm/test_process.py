"""The real CRM sync process: from a record on the topic to the CRM, and a clean exit at SIGTERM."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from confluent_kafka import Consumer

from infra.kafka.producer import Deliverer, Output
from schemas.codec import Codec
from tests.conftest import eventually

pytestmark = pytest.mark.integration

CODEC = Codec()
AUTH = {"authorization": "Bearer pat-test"}


@contextmanager
def process(*words: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("LEADSTREAM_")}
    started = subprocess.Popen([sys.executable, "-m", *words], env=kept | environment)
    try:
        yield started
    finally:
        started.kill()
        started.wait()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


async def test_from_the_topic_to_the_crm(stack: Any, tmp_path: Path) -> None:
    port, lead_id = free_port(), str(uuid.uuid4())
    url = f"http://127.0.0.1:{port}"
    settings = {"LEADSTREAM_CRM_HUBSPOT_BASE_URL": url, "LEADSTREAM_CRM_HUBSPOT_TOKEN": "pat-test"}
    pool = await asyncpg.create_pool(stack.dsn, max_size=1, min_size=0)
    deliverer = Deliverer(stack.settings, "test")
    with (
        process("simulators", "hubspot", "--port", str(port), "--state", str(tmp_path)),
        process("sinks", "crm", "hubspot", **stack.environment(**settings)) as sink,
    ):
        async with httpx.AsyncClient(base_url=url, headers=AUTH) as client:
            await pool.execute(
                "INSERT INTO leads (lead_id, tenant, version, created_at, updated_at, attributes, provenance) "
                """VALUES ($1, 'acme', 4, now(), now(), '{"email": "ada@example.com"}', '{}')""",
                lead_id,
            )
            want = {"tenant": "acme", "lead_id": lead_id, "version": 4, "decided_at": 1}
            await deliverer.deliver([Output("leads.crm-hubspot", lead_id.encode(), CODEC.encoder("crm_wanted")(want))])

            async def synced() -> Any:
                return await pool.fetchval(
                    "SELECT remote_id FROM crm_sync WHERE lead_id = $1 AND synced_version = 4", lead_id
                )

            remote_id = await eventually(synced)
            contact = (await client.get(f"/crm/v3/objects/contacts/{remote_id}")).json()
            assert contact["properties"]["email"] == "ada@example.com"
            assert await eventually(lambda: outcome_of(stack, lead_id)) == ("crm-hubspot", "synced", 4)
        sink.send_signal(signal.SIGTERM)
        assert sink.wait(30) == 0
    await deliverer.close()
    await pool.close()


async def outcome_of(stack: Any, lead_id: str) -> tuple[str, str, int] | None:
    consumer = Consumer(
        {"bootstrap.servers": stack.kafka_bootstrap, "group.id": str(uuid.uuid4()), "auto.offset.reset": "earliest"}
    )
    consumer.subscribe(["leads.outcomes"])
    try:
        for message in consumer.consume(1000, 5):
            record = CODEC.decode(message.value() or b"").record
            if record["lead_id"] == lead_id:
                return record["stage"], record["what"], record["version"]
    finally:
        consumer.close()
    return None


@pytest.mark.parametrize(
    ("name", "message"),
    [("nonesuch", b"there are: hubspot"), ("hubspot", b"LEADSTREAM_CRM_HUBSPOT_TOKEN")],
)
def test_invalid_settings_are_reported_and_end_the_process(name: str, message: bytes, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LEADSTREAM_")}
    environment |= {"LEADSTREAM_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "sinks", "crm", name]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)
    assert done.returncode == 78
    assert message in done.stderr
