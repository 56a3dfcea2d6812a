"""Intake with a real Postgres, and functions that read its results."""

# ruff: noqa: S608 - the statements are constants
from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import orjson
import pytest
from confluent_kafka import Message

from infra.kafka.dead_letters import TOPIC as DEAD
from infra.postgres.pool import connect
from streams.intake.pipeline import Intake
from streams.intake.route import Router
from streams.intake.store import Store
from tests.conftest import Stack, outputs_of
from tests.events import CODEC

TOPICS = {
    "leads.changed": "lead_change",
    "leads.crm-hubspot": "crm_wanted",
    "leads.enrichment-requested": "enrichment_request",
    "leads.campaign-signals": "campaign_signal",
    "leads.outcomes": "outcome",
}
LEAD_INSIDE = ("leads.enrichment-requested", "leads.campaign-signals")
# The part of a lead_change that a redelivery repeats exactly: all fields except the current lead.
EVENT_PART = ("event_id", "event_type", "lead_id", "version", "decided_at", "changes", "merged", "properties", "offset")


def intake(store: asyncpg.Pool | Store, **settings: Any) -> Intake:
    store = store if isinstance(store, Store) else Store(store)
    own = {name: settings.pop(name) for name in ("topics", "part_bytes") if name in settings}
    router = Router(CODEC, ["leads.crm-hubspot"], **own)
    return Intake(store, CODEC, router, **{"max_event_bytes": 65_536, "max_ahead_s": 86_400} | settings)


@asynccontextmanager
async def open_pool(dsn: str) -> AsyncIterator[asyncpg.Pool]:
    pool = await connect(dsn, size=4, application="tests")
    try:
        yield pool
    finally:
        await pool.close()


@pytest.fixture
async def pool(stack: Stack) -> AsyncIterator[asyncpg.Pool]:
    async with open_pool(stack.dsn) as pool:
        await pool.execute("INSERT INTO signal_types VALUES ('tests', 'form_submitted') ON CONFLICT DO NOTHING")
        yield pool


async def put(stage: Intake, *found: Message) -> dict[str, list[Any]]:
    """Process one batch; return the published records by type, and the dead letters as they are."""
    published: dict[str, list[Any]] = {name: [] for name in (*TOPICS.values(), DEAD)}
    for output in await outputs_of(stage.apply(stage.prepare(found))):
        if output.topic == DEAD:
            published[DEAD].append(output)
            continue
        decoded = CODEC.decode(output.value or b"")
        assert decoded.type == TOPICS[output.topic]
        about = json.loads(decoded.record["lead"]) if output.topic in LEAD_INSIDE else decoded.record
        assert output.key == (about.get("lead_id") or about["event_id"]).encode()
        published[decoded.type].append(decoded.record)
    return published


async def state(pool: asyncpg.Pool, tenant: str) -> dict[str, list[tuple[Any, ...]]]:
    """Return every row of a tenant."""
    of_tenant = "WHERE lead_id IN (SELECT lead_id FROM leads WHERE tenant = $1) ORDER BY 1, 2"
    tables = {
        "leads": "SELECT * FROM leads WHERE tenant = $1 ORDER BY lead_id",
        "identities": "SELECT kind, value, lead_id FROM identities WHERE tenant = $1 ORDER BY 1, 2",
        "lead_history": "SELECT * FROM lead_history WHERE tenant = $1 ORDER BY lead_id, version",
        "receipts": f"SELECT * FROM receipts {of_tenant}",
        "lead_aliases": f"SELECT * FROM lead_aliases {of_tenant}",
        "lead_merges": "SELECT * FROM lead_merges WHERE tenant = $1 ORDER BY survivor_id, loser_id",
    }
    return {name: [tuple(row) for row in await pool.fetch(sql, tenant)] for name, sql in tables.items()}


async def leads(pool: asyncpg.Pool, tenant: str) -> list[dict[str, Any]]:
    rows = await pool.fetch("SELECT * FROM leads WHERE tenant = $1 AND merged_into IS NULL ORDER BY lead_id", tenant)
    known = ("attributes", "provenance")
    return [
        dict(row) | {name: orjson.loads(row[name]) for name in known} | {"lead_id": str(row["lead_id"])} for row in rows
    ]
