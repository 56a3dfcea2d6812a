"""A whole installation with clients for each of its stores."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from confluent_kafka import Message, Producer

from infra.clickhouse.client import ClickHouse
from infra.clock import now_us
from infra.settings import Settings, child_environment
from tests.conftest import Stack
from tests.events import record


@dataclass
class World:
    """A running installation and clients for each of its stores."""

    places: dict[str, Any]
    home: Path
    api_headers: dict[str, str]
    postgres: asyncpg.Pool
    clickhouse: ClickHouse
    http: httpx.AsyncClient

    async def lead(self, tenant: str) -> dict[str, Any] | None:
        row = await self.postgres.fetchrow("SELECT * FROM leads WHERE tenant = $1 AND merged_into IS NULL", tenant)
        return dict(row) | {"lead_id": str(row["lead_id"])} if row else None

    async def events(self, tenant: str) -> list[dict[str, Any]]:
        statement = "SELECT event_id, toString(lead_id) AS lead_id, version FROM lead_events WHERE tenant = {t:String}"
        return await self.clickhouse.query(statement, t=tenant)

    async def mails(self, to: str) -> list[dict[str, Any]]:
        answer = await self.http.get(f"{self.places['smtp']['inbox']}/_simulator/messages", params={"to": to})
        found: list[dict[str, Any]] = answer.json()["messages"]
        return found

    async def contact(self, email: str) -> dict[str, Any] | None:
        token = Settings.load({"LEADSTREAM_HOME": str(self.home)})._sections["CRM_HUBSPOT_TOKEN"]
        answer = await self.http.get(
            f"{self.places['hubspot']['url']}/crm/v3/objects/contacts/{email}",
            params={"idProperty": "email"},
            headers={"Authorization": f"Bearer {token}"},
        )
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        assert answer.status_code == httpx.codes.OK, answer.text
        properties: dict[str, Any] = answer.json()["properties"]
        return properties

    async def cli(self, *words: str, expect: int = 0) -> str:
        """Run ``leadstream`` as a person would in another terminal."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cli", *words),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=child_environment({"LEADSTREAM_HOME": str(self.home)}, inherit=False),
        )
        out, err = await process.communicate()
        assert process.returncode == expect, (out + err).decode()
        return out.decode()

    async def at_rest(self) -> bool:
        """Return whether no consumer group is behind."""
        totals = json.loads(await self.cli("lag", "--json", "--totals"))
        return not any(total["messages"] for total in totals.values())

    async def dead(self, found: Message) -> dict[str, Any] | None:
        """Return the row about a dead record."""
        rows = await self.clickhouse.query(
            "SELECT stage, reason, detail, size FROM dead_letters"
            " WHERE topic = {t:String} AND partition = {p:Int32} AND offset = {o:Int64}",
            t=found.topic(),
            p=found.partition(),
            o=found.offset(),
        )
        assert len(rows) < 2
        return rows[0] if rows else None


@pytest.fixture
async def world(pipeline: Stack) -> AsyncIterator[World]:
    pool = await asyncpg.create_pool(pipeline.dsn, min_size=0, max_size=2)
    try:
        async with (
            ClickHouse(pipeline.clickhouse_url) as clickhouse,
            httpx.AsyncClient(timeout=30, trust_env=False) as http,
        ):
            headers = Settings.load({"LEADSTREAM_HOME": str(pipeline.home)}).api_headers
            yield World(pipeline.places, pipeline.home, headers, pool, clickhouse, http)
    finally:
        await pool.close()


def produced(stack: Stack, *values: bytes) -> list[Message]:
    """Produce ``values`` as somebody else's program would; return the records as the broker has them."""
    done: list[Message] = []
    producer = Producer({"bootstrap.servers": stack.kafka_bootstrap})
    for value in values:
        producer.produce("leads.received", value, on_delivery=lambda _, found: done.append(found))
        producer.flush(30)
    assert [found.error() for found in done] == [None] * len(values)
    return done


def document(event_id: str, tenant: str, **own: Any) -> dict[str, Any]:
    return {"type": "form_submitted"} | record("form_submitted", event_id, tenant=tenant, **{"at": now_us()} | own)
