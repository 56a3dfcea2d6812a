"""HubSpot's connector: mapping, trace ids, halving, existing contacts, rate limits by policy."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra import http
from infra.errors import Verdict
from infra.outcomes import Reason
from infra.settings import Settings, SettingsError
from simulators import hubspot as simulator
from sinks.crm import RetiredLead, Snapshot, Synced, SyncFailed, hubspot

CONFIG = hubspot.Config(token="pat-test")
AUTH = {"authorization": "Bearer pat-test"}
UPSERT = "/crm/v3/objects/contacts/batch/upsert"


class Wire(httpx.AsyncBaseTransport):
    """A transport to the simulator that records requests, and can change them."""

    def __init__(self, app: Any, change: Callable[[dict[str, Any]], None] | None = None) -> None:
        self._inner = httpx.ASGITransport(app=app)
        self._change = change
        self.seen: list[tuple[str, dict[str, Any]]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(await request.aread() or b"{}")
        self.seen.append((request.url.path, body))
        if self._change is not None:
            self._change(body)
        headers = {"authorization": request.headers.get("authorization", "")}
        return await self._inner.handle_async_request(
            httpx.Request(request.method, request.url, headers=headers, json=body or None)
        )

    def calls(self, path: str = UPSERT) -> list[dict[str, Any]]:
        return [body for seen, body in self.seen if seen == path]


@asynccontextmanager
async def account(
    state: Path, change: Callable[[dict[str, Any]], None] | None = None
) -> AsyncIterator[tuple[hubspot.HubSpot, Wire, httpx.AsyncClient]]:
    app = simulator.app(state)
    wire = Wire(app, change)
    async with app.router.lifespan_context(app), http.client(CONFIG.base_url, transport=wire) as client:
        client.headers.update(AUTH)
        yield hubspot.connect(CONFIG, client), wire, client


def lead(lead_id: str, **attributes: Any) -> Snapshot:
    return Snapshot(lead_id, "acme", 1, attributes)


def no_traces(body: dict[str, Any]) -> None:
    for each in body.get("inputs", ()):
        each.pop("objectWriteTraceId", None)


async def test_fields_are_mapped_and_only_those_that_have_a_value(tmp_path: Path) -> None:
    async with account(tmp_path) as (crm, wire, _):
        await crm.upsert([lead("a", email="a@example.com", first_name="", score=0.1 + 0.2, employees=12, consent={})])
    (each,) = wire.calls()[0]["inputs"]
    assert each == {
        "idProperty": "leadstream_lead_id",
        "id": "a",
        "objectWriteTraceId": "a",
        "properties": {
            "leadstream_lead_id": "a",
            "email": "a@example.com",
            "leadstream_score": "0.3",
            "leadstream_employees": "12",
        },
    }


def test_every_field_of_the_mapping_is_a_field_of_the_lead() -> None:
    fields = {f["name"] for f in json.loads(Path("schemas/lead.avsc").read_text("utf-8"))["fields"]}
    assert set(hubspot.PROPERTIES) <= fields


async def test_without_trace_ids_a_rejected_lead_is_isolated_by_halving(tmp_path: Path) -> None:
    leads = [lead(f"l{i}", email="no address" if i == 37 else f"p{i}@example.com") for i in range(100)]
    async with account(tmp_path, no_traces) as (crm, wire, _):
        results = await crm.upsert(leads)
    assert [i for i, r in enumerate(results) if isinstance(r, SyncFailed)] == [37]
    assert isinstance(results[37], SyncFailed)
    assert results[37].verdict is Verdict.DEAD
    assert len(wire.calls()) <= 15


async def test_halving_ends_at_the_rate_limit(tmp_path: Path) -> None:
    leads = [lead(f"l{i}", email="no address" if i == 0 else f"p{i}@example.com") for i in range(8)]
    async with account(tmp_path, no_traces) as (crm, wire, client):
        await client.post("/_simulator/limits", json={"per_10s": 1})
        results = await crm.upsert(leads)
        assert len(wire.calls()) == 2
    assert {(r.verdict, r.reason) for r in results if isinstance(r, SyncFailed)} == {
        (Verdict.PAUSE, Reason.RATE_LIMITED)
    }
    assert len(results) == 8


async def test_a_manually_created_contact_becomes_the_leads_contact(tmp_path: Path) -> None:
    async with account(tmp_path) as (crm, wire, client):
        manual = {"idProperty": "email", "id": "ada@example.com", "properties": {"phone": "1"}}
        made = (await client.post(UPSERT, json={"inputs": [manual]})).json()["results"][0]["id"]
        await crm.upsert([lead("taken", email="bob@example.com")])
        results = await crm.upsert(
            [
                lead("a", email="ada@example.com", title="Countess"),
                lead("b", email="bob@example.com"),
                lead("c", email="c@example.com"),
            ]
        )
        assert results[0] == Synced(made)
        assert isinstance(results[1], SyncFailed)
        assert results[1].reason is Reason.CONFLICT
        assert isinstance(results[2], Synced)
        contact = (await client.get(f"/crm/v3/objects/contacts/{made}")).json()["properties"]
        assert (contact["leadstream_lead_id"], contact["jobtitle"], contact["phone"]) == ("a", "Countess", "1")
        assert await crm.upsert([lead("a", email="ada@example.com")]) == [Synced(made)]
    assert len(wire.calls("/crm/v3/objects/contacts/batch/read")) == 1


async def test_a_contact_of_the_survivor_whose_id_was_never_received_is_found_by_its_key(tmp_path: Path) -> None:
    async with account(tmp_path) as (crm, _, _client):
        await crm.upsert([lead("survivor"), lead("loser", email="a@example.com")])  # nobody received the responses
        conflict = (await crm.upsert([lead("survivor", email="a@example.com")]))[0]
        assert isinstance(conflict, SyncFailed)
        assert conflict.reason is Reason.CONFLICT
        retired = (await crm.retire([RetiredLead("loser", "", "survivor", "")]))[0]
        assert isinstance(retired, Synced)
        assert await crm.upsert([lead("survivor", email="a@example.com")]) == [Synced(retired.remote_id)]


async def test_if_the_survivors_contact_was_deleted_the_losers_contact_becomes_its(tmp_path: Path) -> None:
    async with account(tmp_path) as (crm, _, client):
        results = await crm.upsert([lead("survivor"), lead("loser", email="a@example.com")])
        ids = [r.remote_id for r in results if isinstance(r, Synced)]
        await client.post("/crm/v3/objects/contacts/batch/archive", json={"inputs": [{"id": ids[0]}]})
        assert await crm.retire([RetiredLead("loser", ids[1], "survivor", ids[0])]) == [Synced(ids[1])]
        assert await crm.upsert([lead("survivor", email="a@example.com")]) == [Synced(ids[1])]


@pytest.mark.parametrize(
    ("body", "reason", "wait_s"),
    [
        ({"policyName": "DAILY"}, Reason.QUOTA, 900),
        ({"policyName": "TEN_SECONDLY_ROLLING"}, Reason.RATE_LIMITED, 10),
        ({"policyName": "SECONDLY"}, Reason.RATE_LIMITED, 1),
        ({}, Reason.RATE_LIMITED, 10),
    ],
)
async def test_limits_by_policy(body: dict[str, str], reason: Reason, wait_s: float) -> None:
    results = await _answered(429, body)
    assert [(r.verdict, r.reason, r.wait_s) for r in results] == [(Verdict.PAUSE, reason, wait_s)] * 2


@pytest.mark.parametrize(
    ("message", "detail"),
    [
        (
            'Property values were not valid: [{"isValid":false,"error":"PROPERTY_DOESNT_EXIST","name":"x"}]',
            "PROPERTY_DOESNT_EXIST",
        ),
        ("Unable to perform update/upsert by non-unique 0-1 property", "leadstream_lead_id"),
    ],
)
async def test_a_wrong_set_up_pauses_the_sink_and_rejects_no_lead(message: str, detail: str) -> None:
    results = await _answered(400, {"category": "VALIDATION_ERROR", "message": message})
    assert {(r.verdict, r.reason, r.detail) for r in results} == {(Verdict.PAUSE, Reason.MISCONFIGURED, detail)}


async def test_details_contain_no_values_of_the_lead() -> None:
    message = 'Property values were not valid: [{"message":"Email address ada@x is invalid","error":"INVALID_EMAIL"}]'
    results = await _answered(400, {"category": "VALIDATION_ERROR", "message": message})
    assert {r.detail for r in results} == {"INVALID_EMAIL"}


async def _answered(status: int, body: dict[str, str]) -> Sequence[SyncFailed]:
    transport = httpx.MockTransport(lambda _: httpx.Response(status, json=body))
    async with http.client(CONFIG.base_url, transport=transport) as client:
        results = await hubspot.connect(CONFIG, client).upsert([lead("a"), lead("b")])
    return [r for r in results if isinstance(r, SyncFailed)]


async def test_a_wrong_token_and_missing_properties_are_reported(tmp_path: Path) -> None:
    app = simulator.app(tmp_path)
    wrong = hubspot.Config(token="secret-but-wrong")
    async with (
        app.router.lifespan_context(app),
        http.client(wrong.base_url, transport=httpx.ASGITransport(app=app)) as c,
    ):
        assert await hubspot.connect(wrong, c).test() == [
            "the call to HubSpot failed: unauthorized INVALID_AUTHENTICATION"
        ]
    bare = httpx.MockTransport(lambda _: httpx.Response(200, json={"results": [{"name": "leadstream_lead_id"}]}))
    async with http.client(CONFIG.base_url, transport=bare) as client:
        problems = await hubspot.connect(CONFIG, client).test()
    assert "property leadstream_score is missing" in problems
    assert "property leadstream_lead_id must have unique values" in problems


def test_the_token_is_required_and_never_shown() -> None:
    with pytest.raises(SettingsError, match="LEADSTREAM_CRM_HUBSPOT_TOKEN"):
        Settings.load({}).section("crm_hubspot", hubspot.Config)
    config = Settings.load({"LEADSTREAM_CRM_HUBSPOT_TOKEN": "pat-secret"}).section("crm_hubspot", hubspot.Config)
    assert "secret" not in repr(config)


ADA, ANN = "0198c1f2-7b1e-7c9a-8d7e-00000000000a", "0198c1f2-7b1e-7c9a-8d7e-00000000000b"


@pytest.mark.parametrize(
    ("message", "context"),
    [
        ("Contact already exists. Existing ID: 10", {}),
        ("Contact already exists", {"existingId": ["10"]}),
    ],
)
async def test_case_c3_the_contact_in_the_way_and_its_lead_are_named(message: str, context: dict[str, Any]) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == UPSERT:
            error = {"category": "CONFLICT", "message": message, "context": {"objectWriteTraceId": [ADA], **context}}
            return httpx.Response(207, json={"status": "COMPLETE", "results": [], "numErrors": 1, "errors": [error]})
        owner = {"id": "10", "properties": {"leadstream_lead_id": ANN, "email": "ann@example.com"}}
        return httpx.Response(200, json={"results": [owner]})

    async with http.client(CONFIG.base_url, transport=httpx.MockTransport(handler)) as client:
        (result,) = await hubspot.connect(CONFIG, client).upsert([lead(ADA, email="ada@example.com")])
    assert result == SyncFailed(Verdict.RETRY, Reason.CONFLICT, detail="CONFLICT", remote_id="10", owner_id=ANN)


async def test_missing_contacts_that_an_error_names_only_by_id_are_created_again(tmp_path: Path) -> None:
    async with account(tmp_path, no_traces) as (crm, _, client):
        leads = [lead(f"l{i}", email=f"p{i}@example.com") for i in range(4)]
        made = [r.remote_id for r in await crm.upsert(leads) if isinstance(r, Synced)]
        await client.post("/crm/v3/objects/contacts/batch/archive", json={"inputs": [{"id": i} for i in made[:2]]})
        known = [replace(each, remote_id=remote_id) for each, remote_id in zip(leads, made, strict=True)]
        assert await crm.upsert(known) == [Synced("5"), Synced("6"), Synced("3"), Synced("4")]


async def test_a_limit_ends_the_calls_for_missing_contacts(tmp_path: Path) -> None:
    async with account(tmp_path) as (crm, wire, client):
        await client.post("/_simulator/limits", json={"per_10s": 1})
        results = await crm.upsert([replace(lead(f"l{i}"), remote_id=str(i + 1)) for i in range(10)])
    assert {(r.verdict, r.reason) for r in results if isinstance(r, SyncFailed)} == {
        (Verdict.PAUSE, Reason.RATE_LIMITED)
    }
    assert len(results) == 10
    assert len([path for path, _ in wire.seen if path.startswith("/crm")]) == 2


async def test_what_was_sent_and_is_no_property_of_the_mapping_any_more_is_not_cleared(tmp_path: Path) -> None:
    async with account(tmp_path) as (crm, wire, _):
        await crm.upsert([replace(lead("a", email="a@example.com"), cleared=("jobtitle", "former_property"))])
    (each,) = wire.calls()[0]["inputs"]
    assert each["properties"] == {"jobtitle": "", "email": "a@example.com", "leadstream_lead_id": "a"}
