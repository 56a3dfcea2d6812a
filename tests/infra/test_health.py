"""The health pages: what makes a process not ready."""

from __future__ import annotations

import httpx

from infra import health
from infra.errors import ClientFailed
from infra.runtime import Status, Stop


def client_of(status: Status) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(health.app(health.Health(status))), base_url="http://health")


async def test_a_process_is_ready_if_its_check_finds_nothing() -> None:
    found = ["waiting for Kafka"]
    status = Status()

    async def check() -> str:
        return found[0]

    status.check = check
    async with client_of(status) as client:
        response = await client.get("/ready")
        assert (response.status_code, response.text) == (503, "waiting for Kafka\n")
    found[0] = ""
    async with client_of(status) as client:
        assert (await client.get("/ready")).status_code == 200
        assert (await client.get("/live")).text == "live\n"
        assert "leadstream_http_requests" in (await client.get("/metrics")).text


async def test_a_process_that_is_about_to_end_is_not_ready() -> None:
    stop = Stop()
    stop.fail(ClientFailed("the Kafka client api failed permanently: fenced"))
    async with client_of(stop.status) as client:
        ready = await client.get("/ready")
    assert (ready.status_code, ready.text) == (503, "stopping: the Kafka client api failed permanently: fenced\n")
