"""The HubSpot simulator follows the documented API, on which the tests of the connector rely."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from local.ports import free_port, http_ready
from simulators import hubspot
from tests.conftest import eventually

BASE = "/crm/v3/objects/contacts"
AUTH = {"authorization": "Bearer pat-test"}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def client(tmp_path: Path, clock: Clock) -> AsyncIterator[httpx.AsyncClient]:
    app = hubspot.app(tmp_path, clock=clock)
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://hubspot", headers=AUTH) as client,
    ):
        yield client


def contact(key: str, trace: str = "", **properties: str) -> dict[str, Any]:
    made = {"idProperty": "leadstream_lead_id", "id": key, "properties": properties}
    return made | ({"objectWriteTraceId": trace} if trace else {})


async def upsert(client: httpx.AsyncClient, *inputs: dict[str, Any]) -> httpx.Response:
    return await client.post(f"{BASE}/batch/upsert", json={"inputs": list(inputs)})


async def stats(client: httpx.AsyncClient) -> dict[str, int]:
    counts: dict[str, int] = (await client.get("/_simulator/stats")).json()
    return counts


async def test_new_tells_whether_the_contact_was_created(client: httpx.AsyncClient) -> None:
    first = (await upsert(client, contact("a", email="a@example.com"))).json()["results"][0]
    second = (await upsert(client, contact("a", email="b@example.com"))).json()["results"][0]
    assert (first["new"], second["new"], first["id"] == second["id"]) == (True, False, True)
    assert (await client.get(f"{BASE}/{first['id']}")).json()["properties"]["email"] == "b@example.com"


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([contact(str(i)) for i in range(101)], "100"),
        ([contact("a"), contact("a")], "Duplicate"),
        ([contact("a", nonsense="1")], "PROPERTY_DOESNT_EXIST"),
        ([contact("a") | {"idProperty": "company"}], "non-unique"),
        ([contact("a"), contact("b", email="nobody")], "INVALID_EMAIL"),
    ],
)
async def test_one_wrong_input_fails_the_batch(
    client: httpx.AsyncClient, inputs: list[dict[str, Any]], message: str
) -> None:
    response = await upsert(client, *inputs)
    assert response.status_code == 400
    assert message in response.json()["message"]
    assert (await stats(client))["records"] == 0


async def test_with_trace_ids_errors_are_per_input(client: httpx.AsyncClient) -> None:
    await upsert(client, contact("old", email="old@example.com"))
    response = await upsert(
        client,
        contact("a", "ta", email="nobody"),
        contact("b", "tb", email="OLD@example.com"),
        contact("c", "tc", email="c@example.com"),
    )
    assert response.status_code == 207
    body = response.json()
    assert [r["objectWriteTraceId"] for r in body["results"] if r] == ["tc"]
    found = {e["context"]["objectWriteTraceId"][0]: (e["category"], e["message"]) for e in body["errors"]}
    assert found["ta"][0] == "VALIDATION_ERROR"
    assert found["tb"] == ("CONFLICT", "Contact already exists. Existing ID: 1")


async def test_a_merge_redirects_the_merged_id_and_cannot_be_repeated(client: httpx.AsyncClient) -> None:
    await upsert(client, contact("a", phone="1"), contact("b", email="b@example.com", phone="2"))
    merged = await client.post(f"{BASE}/merge", json={"primaryObjectId": "1", "objectIdToMerge": "2"})
    assert merged.json()["properties"] == {
        "leadstream_lead_id": "a",
        "phone": "1",
        "email": "b@example.com",
    }
    assert (await client.get(f"{BASE}/2")).json()["id"] == "1"
    again = await client.post(f"{BASE}/merge", json={"primaryObjectId": "1", "objectIdToMerge": "2"})
    assert again.status_code == 400
    assert (await upsert(client, contact("a", email="b@example.com"))).status_code == 200


async def test_a_merged_contacts_address_becomes_an_additional_one_and_stays_unique(client: httpx.AsyncClient) -> None:
    await upsert(client, contact("a", email="a@example.com"), contact("b", email="B@example.com"))
    await client.post(f"{BASE}/merge", json={"primaryObjectId": "1", "objectIdToMerge": "2"})
    found = (await client.get(f"{BASE}/b@example.com", params={"idProperty": "email"})).json()
    assert (found["id"], found["properties"]["hs_additional_emails"]) == ("1", "B@example.com")
    (error,) = (await upsert(client, contact("b", "t", email="b@example.com"))).json()["errors"]
    assert (error["category"], error["message"]) == ("CONFLICT", "Contact already exists. Existing ID: 1")
    assert (await upsert(client, contact("a", email="b@example.com"))).status_code == 200
    assert (await client.get(f"{BASE}/1")).json()["properties"]["hs_additional_emails"] == ""
    assert (await upsert(client, contact("b", email="a@example.com"))).json()["results"][0]["new"] is True


async def test_an_update_by_a_unique_property_creates_nothing(client: httpx.AsyncClient) -> None:
    await upsert(client, contact("a"))
    inputs = [contact("a", "ta", phone="1"), contact("z", "tz", phone="2")]
    body = (await client.post(f"{BASE}/batch/update", json={"inputs": inputs})).json()
    assert [(r["id"], r["new"]) for r in body["results"] if r] == [("1", False)]
    (error,) = body["errors"]
    assert (error["category"], error["context"]) == ("OBJECT_NOT_FOUND", {"ids": ["z"], "objectWriteTraceId": ["tz"]})
    assert (await stats(client))["records"] == 1


async def test_archiving_releases_the_unique_values(client: httpx.AsyncClient) -> None:
    await upsert(client, contact("a", email="a@example.com"))
    for _ in range(2):
        assert (await client.post(f"{BASE}/batch/archive", json={"inputs": [{"id": "1"}]})).status_code == 204
    assert (await client.get(f"{BASE}/1")).status_code == 404
    again = await upsert(client, contact("b", email="a@example.com"))
    assert again.json()["results"][0]["new"] is True


async def test_a_batch_read_reports_missing_contacts(client: httpx.AsyncClient) -> None:
    await upsert(client, contact("a"))
    body = {"idProperty": "leadstream_lead_id", "inputs": [{"id": "a"}, {"id": "z"}]}
    response = await client.post(f"{BASE}/batch/read", json=body)
    assert response.status_code == 207
    assert [c["id"] for c in response.json()["results"]] == ["1"]


async def test_listing_returns_all_pages(client: httpx.AsyncClient) -> None:
    await upsert(client, *(contact(str(i)) for i in range(25)))
    seen, after = [], ""
    while True:
        page = (await client.get(BASE, params={"limit": 10} | ({"after": after} if after else {}))).json()
        seen += [c["id"] for c in page["results"]]
        if "paging" not in page:
            break
        after = page["paging"]["next"]["after"]
    assert seen == [str(i) for i in range(1, 26)]


async def test_a_token_is_required(client: httpx.AsyncClient) -> None:
    response = await client.get(BASE, headers={"authorization": "Bearer nonsense"})
    assert (response.status_code, response.json()["category"]) == (401, "INVALID_AUTHENTICATION")


async def test_the_limit_of_10_seconds_is_a_rolling_window(client: httpx.AsyncClient, clock: Clock) -> None:
    for _ in range(190):
        assert (await client.get(BASE)).status_code == 200
    refused = await client.get(BASE)
    assert refused.status_code == 429
    assert refused.json()["policyName"] == "TEN_SECONDLY_ROLLING"
    assert refused.json()["errorType"] == "RATE_LIMIT"
    assert refused.headers["X-HubSpot-RateLimit-Remaining"] == "0"
    clock.now = 10.0
    assert (await client.get(BASE)).headers["X-HubSpot-RateLimit-Remaining"] == "189"


async def test_the_daily_limit(client: httpx.AsyncClient) -> None:
    await client.post("/_simulator/limits", json={"daily": 1})
    assert (await client.get(BASE)).status_code == 200
    assert (await client.get(BASE)).json()["policyName"] == "DAILY"


async def test_faults_are_set_and_cleared(client: httpx.AsyncClient) -> None:
    await client.post("/_simulator/faults", json={"status": 503, "share": 0.5})
    seen = {(await client.get(BASE)).status_code for _ in range(50)}
    assert seen == {200, 503}
    await client.post("/_simulator/faults", json={})
    assert (await client.get(BASE)).status_code == 200


async def test_an_invalid_body_is_400(client: httpx.AsyncClient) -> None:
    for body in (b"{", b"[]", b'{"inputs": 1}', b'{"inputs": [1]}', b'{"inputs": [{"id": "a"}]}'):
        assert (await client.post(f"{BASE}/batch/upsert", content=body)).status_code == 400


async def test_contacts_survive_a_restart(tmp_path: Path) -> None:
    async def live(requests: list[tuple[str, Any]]) -> list[Any]:
        app = hubspot.app(tmp_path)
        transport = httpx.ASGITransport(app=app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://hubspot", headers=AUTH) as client,
        ):
            for path, body in requests:
                await client.post(f"{BASE}/{path}", json=body)
            return [
                (await client.get(BASE, params={"limit": 100})).json(),
                (await client.get(f"{BASE}/2")).json()["id"],
            ]

    inputs = [contact("a", email="a@example.com"), contact("b", phone="2"), contact("c")]
    before = await live(
        [
            ("batch/upsert", {"inputs": inputs}),
            ("merge", {"primaryObjectId": "1", "objectIdToMerge": "2"}),
            ("batch/archive", {"inputs": [{"id": "3"}]}),
        ]
    )
    with (tmp_path / "hubspot.jsonl").open("ab") as file:
        file.write(b'{"set":{"9":{"em')  # killed in the middle of a line
    assert await live([]) == before
    after = await live([("batch/upsert", {"inputs": [contact("d")]})])
    assert [c["id"] for c in after[0]["results"]] == ["1", "4"]
    assert await live([]) == after


async def test_sigterm_stops_the_process_with_exit_code_0(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "simulators", "hubspot", "--port", str(port), "--state", str(tmp_path / "s")]
    process = subprocess.Popen(command)  # noqa: ASYNC220 - Popen does not wait
    try:
        await eventually(lambda: http_ready(port, "/_simulator/stats"))
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=AUTH) as client:
            assert (await upsert(client, contact("a"))).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
