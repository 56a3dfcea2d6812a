"""Browsers: pages of configured origins may send events, others may not; programs are not affected."""

from __future__ import annotations

from typing import Any

import httpx
import orjson
import pytest

from tests.api.hostile import EVERYTHING, KeptRecords, app_of, client_of, event

SITE = "https://www.example.com"
TEXT = {"content-type": "text/plain;charset=UTF-8"}
GOOD = orjson.dumps(event())
ASKED = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}


def site_client(origins: str = f"{SITE}, http://localhost:3000") -> httpx.AsyncClient:
    return client_of(KeptRecords(), cors_origins=origins)


def cors_headers(response: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name.startswith("access-control")}


@pytest.mark.parametrize("path", ["/v1/events", "/v1/validate"])
@pytest.mark.parametrize("origin", [SITE, "http://localhost:3000"])
async def test_a_preflight_of_a_configured_origin_is_answered(path: str, origin: str) -> None:
    async with site_client() as client:
        response = await client.options(path, headers=ASKED | {"origin": origin})
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == origin
    assert "POST" in response.headers["access-control-allow-methods"]
    assert "content-type" in response.headers["access-control-allow-headers"].lower()
    assert int(response.headers["access-control-max-age"]) > 0
    assert "Origin" in response.headers["vary"]


@pytest.mark.parametrize(
    ("path", "origin"),
    [
        ("/v1/events", "https://evil.example"),
        ("/v1/events", SITE + ".evil.example"),
        ("/v1/events", "http://www.example.com"),
        ("/v1/events", "null"),
        ("/v1/schemas", SITE),
        ("/subjects", SITE),
    ],
)
async def test_other_origins_and_other_paths_get_no_cors_headers(path: str, origin: str) -> None:
    async with site_client() as client:
        preflight = await client.options(path, headers=ASKED | {"origin": origin})
        actual = await client.post(path, content=GOOD, headers={"origin": origin, "content-type": "application/json"})
    assert preflight.status_code == 405
    assert not cors_headers(preflight)
    assert not cors_headers(actual)


async def test_without_the_setting_no_origin_is_answered() -> None:
    async with client_of(KeptRecords()) as client:
        response = await client.options("/v1/events", headers=ASKED | {"origin": SITE})
    assert (response.status_code, cors_headers(response)) == (405, {})


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (GOOD, {"content-type": "application/json"}, 202),
        (GOOD, TEXT, 202),
        (b"{", TEXT, 400),
        (b"x", {"content-type": "image/png"}, 415),
        (b" " * 5_000_000, TEXT, 413),
    ],
)
async def test_every_response_has_the_headers_errors_too(content: bytes, headers: dict[str, str], status: int) -> None:
    async with site_client() as client:
        response = await client.post("/v1/events", content=content, headers=headers | {"origin": SITE})
    assert response.status_code == status
    assert response.headers["access-control-allow-origin"] == SITE
    assert "Origin" in response.headers["vary"]


async def test_a_failure_of_the_server_has_the_headers_too() -> None:
    broken: Any = object()  # it has no method of a deliverer
    transport = httpx.ASGITransport(app_of(broken, cors_origins=SITE), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://api", headers=EVERYTHING) as client:
        response = await client.post("/v1/events", content=GOOD, headers=TEXT | {"origin": SITE})
    assert (response.status_code, response.headers["access-control-allow-origin"]) == (500, SITE)


async def test_a_star_allows_every_origin() -> None:
    async with site_client("*") as client:
        preflight = await client.options("/v1/events", headers=ASKED | {"origin": SITE})
        actual = await client.post("/v1/events", content=GOOD, headers=TEXT | {"origin": "https://other.example"})
    assert preflight.headers["access-control-allow-origin"] == "*"
    assert (actual.status_code, actual.headers["access-control-allow-origin"]) == (202, "*")


@pytest.mark.parametrize("content", [GOOD, b"[" + GOOD + b"]", GOOD + b"\n" + GOOD, b"\n" + GOOD + b"\r\n\r\n" + GOOD])
async def test_text_of_a_program_is_json_or_ndjson(content: bytes) -> None:
    kept = KeptRecords()
    async with client_of(kept) as client:
        response = await client.post("/v1/events", content=content, headers=TEXT)
    assert response.status_code == 202
    assert len(kept.outputs) == content.count(b'"type"')


@pytest.mark.parametrize("headers", [TEXT, {"content-type": "TEXT/PLAIN"}, {}])
async def test_what_a_browser_sends_unasked_is_refused_from_other_origins(headers: dict[str, str]) -> None:
    kept = KeptRecords()
    async with client_of(kept, cors_origins=SITE) as client:
        refused = await client.post("/v1/events", content=GOOD, headers=headers | {"origin": "https://evil.example"})
        docs = await client.get(refused.json()["error"]["docs"])
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "origin_not_allowed")
    assert "LEADSTREAM_CORS_ORIGINS" in docs.json()["fix"]
    assert not kept.outputs


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/html"])
async def test_forms_are_refused(kind: str) -> None:
    async with site_client("*") as client:
        response = await client.post("/v1/events", content=GOOD, headers={"content-type": kind, "origin": SITE})
    assert (response.status_code, response.json()["error"]["code"]) == (415, "unsupported_type")
