"""The contract of every CRM connector, tested with its simulator and with single responses. Found by folder."""

from __future__ import annotations

import importlib
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

from infra import http, plugins
from infra.errors import Verdict
from infra.outcomes import Reason
from sinks.crm import Connector, RetiredLead, Snapshot, SyncConfig, Synced, SyncFailed

CRMS = plugins.discover("sinks.crm")
every_crm = pytest.mark.parametrize("module", CRMS.values(), ids=CRMS)
Handler = Callable[[httpx.Request], httpx.Response]


def config(module: ModuleType, **given: Any) -> SyncConfig:
    required = [name for name, field in module.Config.model_fields.items() if field.is_required()]
    made: SyncConfig = module.Config(**dict.fromkeys(required, "pat-test"), **given)
    return made


@asynccontextmanager
async def simulated(module: ModuleType, state: Path) -> AsyncIterator[tuple[Connector, httpx.AsyncClient]]:
    app = importlib.import_module(f"simulators.{module.NAME}").app(state)
    settings = config(module)
    transport = httpx.ASGITransport(app=app)
    async with app.router.lifespan_context(app), http.client(settings.base_url, transport=transport) as client:
        yield module.connect(settings, client), client


@asynccontextmanager
async def answering(module: ModuleType, handler: Handler) -> AsyncIterator[Connector]:
    settings = config(module)
    async with http.client(settings.base_url, transport=httpx.MockTransport(handler)) as client:
        yield module.connect(settings, client)


def lead(email: str = "", lead_id: str = "", version: int = 1, **attributes: Any) -> Snapshot:
    return Snapshot(
        lead_id or str(uuid.uuid4()), "acme", version, {"email": email or f"{uuid.uuid4()}@example.com"} | attributes
    )


async def records(client: httpx.AsyncClient) -> int:
    count: int = (await client.get("/_simulator/stats")).json()["records"]
    return count


def state_of(folder: Path) -> str:
    """Return what a simulator has written."""
    return "".join(file.read_text("utf-8") for file in folder.iterdir())


def test_there_are_crms() -> None:
    assert "hubspot" in CRMS


@every_crm
async def test_it_has_its_name_and_reports_problems_of_its_set_up(module: ModuleType, tmp_path: Path) -> None:
    async with simulated(module, tmp_path) as (crm, _):
        assert crm.name == module.NAME
        assert crm.batch_max >= 1
        await crm.ready()
        assert list(await crm.test()) == []
    async with answering(module, lambda _: httpx.Response(401, json={})) as crm:
        assert list(await crm.test()) != []


@every_crm
async def test_two_upserts_of_a_lead_make_one_record(module: ModuleType, tmp_path: Path) -> None:
    async with simulated(module, tmp_path) as (crm, client):
        one = lead()
        first = await crm.upsert([one])
        second = await crm.upsert([lead("moved@example.com", one.lead_id, 2)])
        assert isinstance(first[0], Synced)
        assert first[0].remote_id
        assert first == second
        assert await records(client) == 1


@every_crm
async def test_the_results_of_a_full_batch_are_in_order(module: ModuleType, tmp_path: Path) -> None:
    async with simulated(module, tmp_path) as (crm, client):
        leads = [lead() for _ in range(crm.batch_max)]
        results = await crm.upsert(leads)
        assert [isinstance(r, Synced) for r in results] == [True] * crm.batch_max
        again = await crm.upsert(leads[::-1])
        assert list(again) == list(results)[::-1]
        assert await records(client) == crm.batch_max


@every_crm
async def test_a_bad_lead_fails_alone(module: ModuleType, tmp_path: Path) -> None:
    async with simulated(module, tmp_path) as (crm, client):
        good, bad, other = lead(), lead("this is no address"), lead()
        results = await crm.upsert([good, bad, other])
        assert [type(r) for r in results] == [Synced, SyncFailed, Synced]
        assert isinstance(results[1], SyncFailed)
        assert (results[1].verdict, results[1].reason) == (Verdict.DEAD, Reason.REJECTED)
        assert "address" not in results[1].detail
        assert await records(client) == 2


@every_crm
async def test_the_address_of_another_lead_is_a_conflict_to_retry(module: ModuleType, tmp_path: Path) -> None:
    async with simulated(module, tmp_path) as (crm, client):
        first = lead("same@example.com")
        (made,) = await crm.upsert([first])
        (result,) = await crm.upsert([lead("same@example.com")])
        assert isinstance(result, SyncFailed)
        assert (result.verdict, result.reason) == (Verdict.RETRY, Reason.CONFLICT)
        assert isinstance(made, Synced)
        assert (result.remote_id, result.owner_id) == (made.remote_id, first.lead_id), "it names the record in the way"
        assert await records(client) == 1


@every_crm
async def test_the_address_of_an_erased_lead_can_be_used_again(module: ModuleType, tmp_path: Path) -> None:
    async with simulated(module, tmp_path) as (crm, client):
        known = lead("ada@example.com", first_name="Ada", phone="+491", score=1.5, company="Example")
        await crm.upsert([known])
        await crm.upsert([Snapshot(known.lead_id, "acme", 2, {"status": "new"}, erased=True)])
        assert await records(client) == 1
        (result,) = await crm.upsert([lead("ada@example.com")])
        assert isinstance(result, Synced)


@every_crm
async def test_an_erased_record_is_gone_for_good_and_repetition_is_safe(module: ModuleType, tmp_path: Path) -> None:
    async with simulated(module, tmp_path) as (crm, client):
        assert crm.erases, "by default"
        leads = [lead(first_name="canary") for _ in range(3)]
        ids = [r.remote_id for r in await crm.upsert(leads) if isinstance(r, Synced)]
        erased = [RetiredLead(leads[0].lead_id, ids[0]), RetiredLead(leads[1].lead_id), RetiredLead(str(uuid.uuid4()))]
        for _ in range(2):
            assert all(isinstance(result, Synced) for result in await crm.erase(erased))
            assert await records(client) == 1
        assert state_of(tmp_path).count("canary") == 1


@every_crm
async def test_after_retirement_each_remaining_lead_has_one_record_and_repetition_is_safe(
    module: ModuleType, tmp_path: Path
) -> None:
    async with simulated(module, tmp_path) as (crm, client):
        leads = [lead() for _ in range(6)]
        ids = [r.remote_id for r in await crm.upsert(leads) if isinstance(r, Synced)]
        survivor, heir = leads[0].lead_id, str(uuid.uuid4())
        retired = [
            RetiredLead(leads[1].lead_id, ids[1], survivor, ids[0]),
            RetiredLead(leads[2].lead_id, "", survivor, ids[0]),  # its remote id is unknown
            RetiredLead(leads[3].lead_id, ids[3], heir),  # its survivor has no record
            RetiredLead(leads[4].lead_id, ids[4]),  # erased
            RetiredLead(str(uuid.uuid4()), "", survivor, ids[0]),  # it has no record
        ]
        for _ in range(2):
            results = await crm.retire(retired)
            assert all(isinstance(r, Synced) for r in results), results
            assert await records(client) == 3
        (result,) = await crm.upsert([lead(lead_id=heir)])
        assert result == Synced(ids[3])
        assert await records(client) == 3


@every_crm
@pytest.mark.parametrize(
    ("status", "verdicts", "reasons"),
    [
        (401, {Verdict.PAUSE, Verdict.REFRESH}, {Reason.UNAUTHORIZED}),
        (403, {Verdict.PAUSE, Verdict.REFRESH}, {Reason.UNAUTHORIZED}),
        (409, {Verdict.RETRY}, {Reason.CONFLICT}),
        (422, {Verdict.DEAD}, {Reason.REJECTED}),
        (429, {Verdict.PAUSE}, {Reason.RATE_LIMITED, Reason.QUOTA}),
        (500, {Verdict.RETRY}, {Reason.UNAVAILABLE}),
        (503, {Verdict.RETRY}, {Reason.UNAVAILABLE}),
    ],
)
@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b"[]"])
async def test_error_responses_are_classified(
    module: ModuleType, status: int, verdicts: set[Verdict], reasons: set[Reason], body: bytes
) -> None:
    async with answering(module, lambda _: httpx.Response(status, content=body)) as crm:
        results = [*await crm.upsert([lead(), lead()]), *await crm.retire([RetiredLead(str(uuid.uuid4()), "1")] * 1)]
    for result in results:
        assert isinstance(result, SyncFailed)
        assert result.verdict in verdicts
        assert result.reason in reasons
        assert result.wait_s > 0 or result.verdict is not Verdict.PAUSE


@every_crm
async def test_a_successful_response_without_the_lead_is_retried(module: ModuleType) -> None:
    async with answering(module, lambda _: httpx.Response(200, json={})) as crm:
        (result,) = await crm.upsert([lead()])
        assert isinstance(result, SyncFailed)
        assert result.verdict is Verdict.RETRY


@every_crm
@pytest.mark.parametrize("name", ["results", "errors"])
@pytest.mark.parametrize(
    "value",
    [
        *([], {}, "x", 1, [None], ["x"], [[]], [{}], [{"id": None}], [{"id": "1"}], [{"id": {}, "properties": "x"}]),
        *([{"context": "x"}], [{"context": {"objectWriteTraceId": 1, "ids": "x", "existingId": {}}}]),
        [{"message": None, "category": [], "errors": "x"}],
    ],
    ids=repr,
)
async def test_a_successful_response_of_any_shape_does_nothing_and_raises_nothing(
    module: ModuleType, name: str, value: Any
) -> None:
    known = replace(lead(), remote_id="1")
    retired = [RetiredLead(str(uuid.uuid4()), "1"), RetiredLead(str(uuid.uuid4()), "", str(uuid.uuid4()), "2")]
    for body in ({name: value}, {name: value, "id": value}):
        async with answering(module, lambda _, body=body: httpx.Response(200, json=body)) as crm:  # type: ignore[misc]
            results = await crm.upsert([lead(), known])
            assert [type(result) for result in results] == [SyncFailed, SyncFailed]
            await crm.retire(retired)
            await crm.test()


@every_crm
async def test_a_read_without_any_answer_retires_nothing(module: ModuleType) -> None:
    """Otherwise the row would be deleted and the record of a deleted lead would stay in the CRM."""
    retired = [RetiredLead(str(uuid.uuid4()), "1"), RetiredLead(str(uuid.uuid4()), "", str(uuid.uuid4()), "2")]
    async with answering(module, lambda _: httpx.Response(200, json={"status": "COMPLETE", "results": []})) as crm:
        for result in await crm.retire(retired):
            assert isinstance(result, SyncFailed)
            assert result.verdict is Verdict.RETRY


@every_crm
async def test_properties_are_the_values_that_are_set_and_of_an_erased_lead_all_names(module: ModuleType) -> None:
    async with answering(module, lambda _: httpx.Response(500)) as crm:
        full, empty = lead("ada@example.com", title="CTO"), Snapshot(str(uuid.uuid4()), "acme", 1, {"title": None})
        assert "CTO" in crm.properties(full).values()
        assert crm.properties(full) == crm.properties(full)
        assert crm.properties(full) != crm.properties(lead("ada@example.com", title="CEO"))
        assert dict(crm.properties(empty)) == {}
        erased = crm.properties(replace(empty, erased=True))
        assert set(erased.values()) == {""}
        assert set(crm.properties(full)) < set(erased)


@every_crm
@pytest.mark.parametrize(
    ("error", "reason"),
    [(httpx.ReadTimeout("late"), Reason.TIMEOUT), (httpx.ConnectError("refused"), Reason.UNAVAILABLE)],
)
async def test_without_a_response_every_lead_is_retried(module: ModuleType, error: Exception, reason: Reason) -> None:
    def handler(_: httpx.Request) -> httpx.Response:
        raise error

    async with answering(module, handler) as crm:
        results = await crm.upsert([lead(), lead()])
        assert results == [SyncFailed(Verdict.RETRY, reason)] * 2


@every_crm
async def test_a_lost_response_causes_no_second_record(module: ModuleType, tmp_path: Path) -> None:
    app = importlib.import_module(f"simulators.{module.NAME}").app(tmp_path)
    inner = httpx.ASGITransport(app=app)
    lost: list[httpx.Response] = []

    class Losing(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            response = await inner.handle_async_request(request)
            if not lost and request.method != "GET":
                lost.append(response)
                raise httpx.ReadTimeout("the response was lost")
            return response

    settings = config(module)
    async with app.router.lifespan_context(app), http.client(settings.base_url, transport=Losing()) as client:
        results = await module.connect(settings, client).upsert([lead(), lead()])
        assert lost
        assert all(isinstance(r, Synced) for r in results)
        assert await records(client) == 2
