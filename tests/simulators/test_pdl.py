"""The People Data Labs simulator follows the documented API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from simulators import pdl

KEY = {"x-api-key": "test"}
PATH = "/v5/person/enrich"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def account(tmp_path: Path, clock: Clock) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=pdl.app(tmp_path, per_minute=5, clock=clock))
    async with httpx.AsyncClient(transport=transport, base_url="http://pdl", headers=KEY) as client:
        yield client


def known() -> str:
    """Return an address that has a match."""
    return next(f"lead{n}@example.com" for n in range(500) if pdl.person(f"email:lead{n}@example.com") is not None)


def unknown() -> str:
    """Return an address that has no match."""
    return next(f"lead{n}@example.com" for n in range(500) if pdl.person(f"email:lead{n}@example.com") is None)


async def stats(client: httpx.AsyncClient) -> dict[str, int]:
    counts: dict[str, int] = (await client.get("/_simulator/stats")).json()
    return counts


async def test_get_and_post_return_the_same_match_for_one_credit_each(account: httpx.AsyncClient) -> None:
    email = known()
    by_get = await account.get(PATH, params={"email": email})
    by_post = await account.post(PATH, json={"email": email})
    assert by_get.status_code == 200
    assert by_get.json() == by_post.json()
    assert by_get.headers["x-call-credits-spent"] == "1"
    assert by_get.json()["data"]["first_name"].islower()
    assert (await account.post(PATH, json={"email": email, "titlecase": True})).json()["data"]["first_name"].istitle()


async def test_no_match_and_too_low_a_likelihood_are_404_and_free(account: httpx.AsyncClient) -> None:
    missed = await account.get(PATH, params={"email": unknown()})
    assert (missed.status_code, missed.json()["error"]["type"]) == (404, "not_found")
    assert missed.headers["x-call-credits-spent"] == "0"
    unlikely = next(
        f"lead{n}@example.com"
        for n in range(500)
        if (found := pdl.person(f"email:lead{n}@example.com")) and found["likelihood"] < 8
    )
    assert (await account.get(PATH, params={"email": unlikely, "min_likelihood": 8})).status_code == 404
    assert (await stats(account))["not_found"] == 2


@pytest.mark.parametrize(
    ("body", "status"),
    [({}, 400), ({"name": "Ada Lovelace"}, 400), ({"email": "a@example.com", "min_likelihood": 11}, 400)],
)
async def test_insufficient_or_invalid_input_is_400(account: httpx.AsyncClient, body: Any, status: int) -> None:
    assert (await account.post(PATH, json=body)).status_code == status


async def test_a_missing_key_is_401_and_no_credits_left_is_402(account: httpx.AsyncClient) -> None:
    assert (await account.post(PATH, json={"email": known()}, headers={"x-api-key": ""})).status_code == 401
    await account.post("/_simulator/limits", json={"credits": 0})
    assert (await account.post(PATH, json={"email": known()})).status_code == 402


async def test_the_limit_is_a_fixed_window_of_a_minute(account: httpx.AsyncClient, clock: Clock) -> None:
    clock.now = 59
    assert [(await account.get(PATH, params={"email": known()})).status_code for _ in range(6)] == [200] * 5 + [429]
    clock.now = 60
    assert (await account.get(PATH, params={"email": known()})).status_code == 200
    assert (await stats(account))["limited"] == 1


async def test_a_file_in_the_state_folder_sets_the_limit(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "pdl.json").write_bytes(orjson.dumps({"per_minute": 50}))
    transport = httpx.ASGITransport(app=pdl.app(tmp_path, per_minute=1, clock=clock))
    async with httpx.AsyncClient(transport=transport, base_url="http://pdl", headers=KEY) as client:
        responses = [await client.get(PATH, params={"email": known()}) for _ in range(50)]
    assert {response.status_code for response in responses} == {200}


def test_about_seven_of_ten_inputs_have_a_match() -> None:
    found = sum(pdl.person(f"email:someone{n}@example.com") is not None for n in range(2000))
    assert 1300 < found < 1500


async def test_faults_are_set_and_cleared(account: httpx.AsyncClient) -> None:
    await account.post("/_simulator/faults", json={"status": 503})
    assert (await account.get(PATH, params={"email": known()})).status_code == 503
    await account.post("/_simulator/faults", json={"junk": True})
    assert (await account.get(PATH, params={"email": known()})).text.startswith("<html>")
    await account.post("/_simulator/faults", json={})
    assert (await account.get(PATH, params={"email": known()})).status_code == 200
