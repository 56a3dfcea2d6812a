"""``leadstream leads show``, ``review`` and ``audit`` on real stores, with leads as intake makes them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from cli import lead_reviews, leads
from infra.clickhouse.client import ClickHouse
from infra.clock import now_us
from tests.conftest import Stack
from tests.events import message, payload
from tests.streams.intake.conftest import intake, open_pool, put

pytestmark = pytest.mark.integration
AT = now_us() - 60_000_000


def command() -> typer.Typer:
    app = typer.Typer()
    leads.register(app)
    lead_reviews.register(app)
    return app


@pytest.fixture
def run(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("LEADSTREAM_DATABASE_URL", stack.settings.database_url)
    monkeypatch.setenv("LEADSTREAM_CLICKHOUSE_URL", stack.settings.clickhouse_url)
    return lambda *words: CliRunner().invoke(command(), ["leads", *map(str, words)])


def tell(stack: Stack, tenant: str, *events: dict[str, Any]) -> list[str]:
    """Let intake decide events; return the lead of each."""

    async def decide() -> list[str]:
        async with open_pool(stack.dsn) as pool:
            found: list[str] = []
            for number, own in enumerate(events):
                value = payload(own.pop("kind"), f"{tenant}-{number}", tenant=tenant, at=AT, **own)
                made = await put(intake(pool), message(value, topic=f"t-{tenant}", offset=number, at=AT))
                found += [change["lead_id"] for change in made["lead_change"]]
            return found

    return asyncio.run(decide())


def test_show_prints_values_with_who_said_them(stack: Stack, run: Callable[..., Result], unique: str) -> None:
    email = f"ada-{unique}@example.com"
    lead_id, *_ = tell(
        stack,
        unique,
        {"kind": "form_submitted", "email": email, "first_name": "Ada", "form_id": "f"},
        {"kind": "enrichment_completed", "email": email, "provider": "pdl", "company": "Example", "source": "pdl"},
    )

    for id_ in (email, lead_id, email.upper()):
        found = json.loads(run("show", id_, "--tenant", unique, "--json").stdout)
        assert (found["lead_id"], found["version"]) == (lead_id, 2)
    said = {each["field"]: each for each in found["values"]}
    assert said["first_name"] | {"occurred_at": ""} == {
        "field": "first_name",
        "value": "Ada",
        "authority": "person or crm_user",
        "occurred_at": "",
        "event_id": f"{unique}-0",
        "event_type": "form_submitted",
        "source": "web",
    }
    assert (said["company"]["authority"], said["company"]["source"]) == ("enrichment", "pdl")
    assert found["identities"] == [{"kind": "email", "value": email, "strength": "strong"}]
    assert "Example" in run("show", lead_id).stdout


def test_show_names_what_to_do_if_nothing_or_several_leads_match(
    stack: Stack, run: Callable[..., Result], unique: str
) -> None:
    other = f"{unique}-2"
    for tenant in (unique, other):
        tell(stack, tenant, {"kind": "lead_created", "email": f"{unique}@example.com"})

    missing, several = run("show", f"nobody-{unique}"), run("show", f"{unique}@example.com")

    assert (missing.exit_code, several.exit_code) == (1, 1)
    assert "There is no lead" in missing.stderr
    assert f"--tenant, one of {unique}, {other}" in several.stderr


def test_merge_and_split_refuse_before_they_send(stack: Stack, run: Callable[..., Result], unique: str) -> None:
    one, two = tell(stack, unique, *({"kind": "lead_created", "email": f"{n}-{unique}@example.com"} for n in range(2)))
    (foreign,) = tell(stack, f"{unique}-2", {"kind": "lead_created", "email": f"{unique}@example.com"})

    for kind in ("merge", "split"):
        assert "two different leads" in run(kind, one, one, "--yes").stderr
        assert "different tenants" in run(kind, one, foreign, "--yes").stderr
        assert "There is no lead" in run(kind, one, f"0-{unique}", "--yes").stderr
        unasked = run(kind, one, two)
        assert (unasked.exit_code, "Add --yes" in unasked.stderr) == (2, True)


def test_reviews_are_listed_by_identity_and_closed(stack: Stack, run: Callable[..., Result], unique: str) -> None:
    phone = "+442071838750"
    people = [f"{n}-{unique}@example.com" for n in range(4)]
    made = tell(stack, unique, *({"kind": "lead_created", "email": email, "phone": phone} for email in people))

    (row,) = json.loads(run("review", "--tenant", unique, "--json").stdout)

    assert (row["kind"], row["value"], row["why"], row["leads"]) == ("phone", phone, "shared", 3)
    assert (row["holder"], row["newest_lead"] in made[1:]) == (made[0], True)
    assert "people share it" in run("review", "--tenant", unique).stdout
    assert json.loads(run("review", "--tenant", unique, "--page", "2", "--json").stdout) == []
    one = run("review", "close", unique, "phone", phone, "--lead", made[1], "--json")
    assert json.loads(one.stdout) == {"closed": 1}
    assert "2 reviews closed" in run("review", "close", unique, "phone", phone).stdout
    assert run("review", "close", unique, "phone", phone).exit_code == 1
    assert "No open reviews" in run("review", "--tenant", unique).stdout


def test_audit_finds_what_todays_policy_would_not_have_made(
    stack: Stack, run: Callable[..., Result], unique: str
) -> None:
    people = [f"{name}-{unique}@example.com" for name in ("ada", "grace", "alan", "mary")]
    made = tell(stack, unique, *({"kind": "lead_created", "email": email} for email in people))
    assert json_lines(run("audit", "--tenant", unique, "--json")) == []
    kiosk, strong = {"email": people[0], "anonymous_id": "kiosk"}, {"email": people[2], "external_id": f"u-{unique}"}
    asyncio.run(_as_before(stack, unique, made, {"weak": kiosk, "strong": strong}))

    found = json_lines(run("audit", "--tenant", unique, "--values", "--json"))

    said = {(each["problem"], each["kind"], each["lead_id"]): each for each in found}
    assert said.keys() == {
        ("placeholder", "external_id", made[0]),
        ("form", "email", made[0]),
        ("cap", "crm:hubspot", made[2]),
        ("weak_merge", "", made[0]),
        ("unknown_event", "", made[0]),
    }
    assert said["placeholder", "external_id", made[0]]["examples"] == ["null"]
    assert said["cap", "crm:hubspot", made[2]]["count"] == 30
    assert said["weak_merge", "", made[0]]["other_lead_id"] == made[1]
    assert "examples" not in run("audit", "--tenant", unique, "--json").stdout  # they are personal data
    assert "1 placeholder" in run("audit", "--tenant", unique).stdout


def json_lines(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


async def _as_before(stack: Stack, tenant: str, made: list[str], events: dict[str, dict[str, str]]) -> None:
    """Write what an earlier version, without the policy, has written."""
    async with open_pool(stack.dsn) as pool:
        identities = [("external_id", "null", made[0]), ("email", f"MARY-{tenant}@EXAMPLE.COM", made[0])]
        identities += [("crm:hubspot", f"1{n:03d}", made[2]) for n in range(30)]
        for kind, value, lead_id in identities:
            await pool.execute("INSERT INTO identities VALUES ($1, $2, $3, $4)", tenant, kind, value, lead_id)
        merges = [("weak", made[0], made[1], 1), ("strong", made[2], made[3], 3), ("nowhere", made[0], made[3], 3)]
        for event_id, survivor, loser, number in merges:
            names = ("ada", "grace", "alan", "mary")
            of = {"attributes": {"email": f"{names[made.index(survivor)]}-{tenant}@example.com"}, "provenance": {}}
            moved = [["email", f"{names[number]}-{tenant}@example.com"], ["external_id", f"u-{tenant}"]]
            await pool.execute(
                "INSERT INTO lead_merges (survivor_id, loser_id, tenant, event_id, survivor, loser, identities) "
                "VALUES ($1, $2, $3, $4, $5, '{}', $6)",
                *(survivor, loser, tenant, f"{event_id}-{tenant}", json.dumps(of), json.dumps(moved)),
            )
    rows = [
        {
            "tenant": tenant,
            "event_id": f"{name}-{tenant}",
            "event_type": "page_viewed",
            "lead_id": made[0],
            "version": number + 2,
            "decided_at": "2026-03-01 12:00:00.000000",
            "properties": json.dumps({"identifiers": _identifiers(who)}),
        }
        for number, (name, who) in enumerate(events.items())
    ]
    async with ClickHouse(stack.clickhouse_url) as server:
        await server.insert("lead_events_store", "JSONEachRow", "\n".join(map(json.dumps, rows)).encode())


def _identifiers(who: dict[str, str]) -> dict[str, Any]:
    names = ("external_id", "email", "phone", "anonymous_id")
    return dict.fromkeys(names, "") | {"crm_ids": {}} | who
