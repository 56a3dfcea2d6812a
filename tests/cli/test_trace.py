"""``leadstream trace`` on real Postgres and ClickHouse, with rows as the stages write them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
import typer
from typer.testing import CliRunner

from cli import dead, trace
from infra.clickhouse.client import ClickHouse
from operations.migrate_clickhouse import migrate as migrate_clickhouse
from operations.migrate_postgres import migrate as migrate_postgres

pytestmark = pytest.mark.integration
STARTED_AT = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


def command() -> typer.Typer:
    app = typer.Typer()
    trace.register(app)
    dead.register(app)
    return app


@dataclass
class Lead:
    """A lead with four kinds of steps: created, changed by a merge, a duplicate event, synced after a failure."""

    tenant: str = field(default_factory=lambda: f"t-{uuid4().hex[:8]}")
    lead_id: str = field(default_factory=lambda: str(uuid4()))
    loser_id: str = field(default_factory=lambda: str(uuid4()))
    first: str = field(default_factory=lambda: f"e1-{uuid4().hex}")
    second: str = field(default_factory=lambda: f"e2-{uuid4().hex}")
    email: str = field(default_factory=lambda: f"{uuid4().hex[:8]}@example.com")
    offset: int = field(default_factory=lambda: uuid4().int % 10**12)


def at(milliseconds: int) -> str:
    return (STARTED_AT + timedelta(milliseconds=milliseconds)).strftime("%Y-%m-%d %H:%M:%S.%f")


def rows(lead: Lead) -> dict[str, list[dict[str, Any]]]:
    common: dict[str, Any] = {
        "tenant": lead.tenant,
        "lead_id": lead.lead_id,
        "source": "web",
        "own": False,
        "properties": "{}",
    }
    common |= {"occurred_at": at(0), "topic": "leads.received", "partition": 1}
    first: dict[str, Any] = {
        "event_id": lead.first,
        "event_type": "lead_created",
        "version": 1,
        "offset": lead.offset,
        "merged": [],
    }
    first |= {"received_at": at(10), "decided_at": at(30), "changes": json.dumps({"first_name": "Ada", "email": "a@b"})}
    second: dict[str, Any] = {
        "event_id": lead.second,
        "event_type": "form_submitted",
        "version": 2,
        "offset": lead.offset + 1,
    }
    second |= {"received_at": at(40), "decided_at": at(60), "changes": "{}", "merged": [lead.loser_id]}
    outcome: dict[str, Any] = {
        "tenant": lead.tenant,
        "reason": "",
        "event_id": "",
        "topic": "",
        "partition": -1,
        "offset": -1,
        "detail": "",
    }
    synced: dict[str, Any] = {
        "at": at(2060),
        "stage": "crm-hubspot",
        "what": "synced",
        "lead_id": lead.lead_id,
        "version": 2,
    }
    parked = synced | {"at": at(500), "what": "parked", "reason": "rate_limited"}
    duplicate: dict[str, Any] = {
        "at": at(90),
        "stage": "intake",
        "what": "duplicate",
        "reason": "duplicate_event",
        "lead_id": "",
    }
    duplicate |= {
        "event_id": lead.first,
        "version": 0,
        "topic": "leads.received",
        "partition": 1,
        "offset": lead.offset + 2,
    }
    dead: dict[str, Any] = {
        "at": at(5),
        "stage": "intake",
        "reason": "not_avro",
        "detail": "cut",
        "topic": "leads.received",
    }
    dead |= {"partition": 7, "offset": lead.offset, "dead_partition": 0, "dead_offset": 5, "size": 3}
    return {
        "lead_events_store": [common | first, common | second],
        "outcomes_store": [outcome | synced, outcome | parked, outcome | duplicate],
        "dead_letters_store": [dead],
    }


@pytest.fixture
def run(stack: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setenv("LEADSTREAM_DATABASE_URL", stack.settings.database_url)
    monkeypatch.setenv("LEADSTREAM_CLICKHOUSE_URL", stack.settings.clickhouse_url)
    return lambda *words: CliRunner().invoke(command(), ["trace", *map(str, words)])


@pytest.fixture
def write(stack: Any) -> Callable[[Lead], None]:
    async def put(lead: Lead) -> None:
        await migrate_postgres(stack.settings.database_url)
        await migrate_clickhouse(stack.settings.clickhouse_url)
        async with ClickHouse(stack.settings.clickhouse_url) as server:
            for table, inserted in rows(lead).items():
                await server.insert(table, "JSONEachRow", "\n".join(map(json.dumps, inserted)).encode())
        connection = await asyncpg.connect(stack.settings.database_url)
        insert = (
            "INSERT INTO leads (lead_id, tenant, version, merged_into, created_at, updated_at, attributes, provenance)"
            " VALUES ($1, $2, $3, $4, now(), now(), '{}', '{}')"
        )
        await connection.execute(insert, lead.lead_id, lead.tenant, 2, None)
        await connection.execute(insert, lead.loser_id, lead.tenant, 1, lead.lead_id)
        await connection.execute("INSERT INTO lead_aliases VALUES ($1, $2)", lead.loser_id, lead.lead_id)
        await connection.execute(
            "INSERT INTO identities VALUES ($1, 'email', $2, $3)", lead.tenant, lead.email, lead.lead_id
        )
        await connection.execute(
            "INSERT INTO crm_sync (destination, tenant, lead_id, wanted_version, synced_version, last_wanted_at,"
            " remote_id) VALUES ('hubspot', $1, $2, 2, 2, now(), '501')",
            lead.tenant,
            lead.lead_id,
        )
        await connection.close()

    return lambda lead: asyncio.run(put(lead))


@pytest.fixture
def lead(write: Callable[[Lead], None]) -> Lead:
    made = Lead()
    write(made)
    return made


STEPS = [("received", 0), ("accepted", 20), ("received", 10), ("accepted", 20), ("merged", 0)]
STEPS += [("duplicate", 30), ("parked", 410), ("synced", 1560)]


def test_the_steps_of_a_lead_are_in_order_of_time_with_the_time_between_them(run: Any, lead: Lead) -> None:
    timeline = json.loads(run(lead.lead_id, "--json").stdout)
    assert [(step["what"], step["after_ms"]) for step in timeline["steps"]] == STEPS
    assert (timeline["kind"], timeline["tenant"], timeline["version"]) == ("lead", lead.tenant, 2)
    assert timeline["merged"] == [lead.loser_id]
    assert timeline["crm"][0]["remote_id"] == "501"
    details = {step["what"]: step["said"] for step in timeline["steps"]}
    assert "remote id 501" in details["synced"]
    assert details["parked"] == "rate_limited"
    assert lead.loser_id in details["merged"]
    assert f"leads.received/1/{lead.offset + 2}" in details["duplicate"]


def test_a_lead_is_found_by_a_merged_lead_id_and_by_an_identifier(run: Any, lead: Lead) -> None:
    for id_ in (lead.loser_id, lead.email, lead.email.upper()):
        assert json.loads(run(id_, "--json").stdout)["lead_id"] == lead.lead_id


def test_the_steps_of_an_event_end_when_every_stage_has_processed_its_version(run: Any, lead: Lead) -> None:
    timeline = json.loads(run(lead.first, "--json").stdout)
    assert [step["what"] for step in timeline["steps"]] == ["received", "accepted", "duplicate", "parked", "synced"]
    by_coordinates = json.loads(run(f"leads.received/1/{lead.offset}", "--json").stdout)
    assert by_coordinates == timeline


def test_values_are_shown_only_on_request(run: Any, lead: Lead) -> None:
    shown = run(lead.first).stdout
    assert "first_name, email" in shown
    assert "Ada" not in shown
    assert "first_name=Ada" in run(lead.first, "--values").stdout


def test_a_dead_record_is_found_by_its_coordinates(run: Any, lead: Lead) -> None:
    timeline = json.loads(run(f"leads.received/7/{lead.offset}", "--json").stdout)
    assert [(step["what"], step["said"]) for step in timeline["steps"]] == [
        ("dead", "not_avro; cut; kept at leads.dead/0/5")
    ]


def test_an_unknown_id_exits_with_1_and_a_message(run: Any, lead: Lead) -> None:
    for unknown in (uuid4(), "nobody@example.com", f"leads.received/6/{lead.offset}", 'it\'s \\ "odd"'):
        result = run(unknown)
        assert result.exit_code == 1
        assert "Nothing found" in result.output


def test_an_id_of_two_tenants_needs_the_tenant_option(run: Any, lead: Lead, write: Any) -> None:
    other = Lead(first=lead.first, email=lead.email)
    write(other)
    for shared in (lead.first, lead.email):
        result = run(shared)
        assert result.exit_code == 1
        assert "--tenant" in result.output
        timeline = json.loads(run(shared, "--tenant", other.tenant, "--json").stdout)
        assert (timeline["tenant"], timeline["lead_id"]) == (other.tenant, other.lead_id)
