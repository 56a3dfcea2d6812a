"""``leadstream leads merge`` and ``split`` on a whole installation: every store follows."""

from __future__ import annotations

import json

import httpx
import pytest

from tests.conftest import eventually
from tests.integration.conftest import World, document

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]


async def test_a_split_undoes_a_merge_in_every_store(world: World, unique: str) -> None:
    emails = [f"{name}-{unique}@example.com" for name in ("ada", "grace")]
    forms = [document(f"f-{n}", unique, email=email, form_id="f") for n, email in enumerate(emails)]
    url = f"{world.places['api']['url']}/v1/events"
    answer = await world.http.post(url, json=forms, headers=world.api_headers)
    assert answer.status_code == httpx.codes.ACCEPTED, answer.text

    async def leads() -> list[str]:
        rows = await world.clickhouse.query(
            "SELECT toString(lead_id) AS lead_id FROM leads WHERE tenant = {t:String} ORDER BY lead_id", t=unique
        )
        return [row["lead_id"] for row in rows]

    async def people() -> dict[str, str]:
        return {e["event_id"]: e["lead_id"] for e in await world.events(unique) if e["event_id"].startswith("f-")}

    async def synced() -> bool:
        return all([await world.contact(email) for email in emails])

    await eventually(lambda: _has(leads, 2))
    await eventually(synced)
    one, two = await leads()
    before = await people()

    refused = json.loads(await world.cli("leads", "split", one, two, "--yes", "--json", expect=1))
    assert refused["reason"] == "not_merged"
    merged = json.loads(await world.cli("leads", "merge", emails[0], emails[1], "--yes", "--json"))
    assert merged["lead_id"] == one
    await eventually(lambda: _has(leads, 1))
    assert set((await people()).values()) == {one}
    again = json.loads(await world.cli("leads", "merge", one, two, "--yes", "--json", expect=1))
    assert again["reason"] == "same_lead"

    assert "Split from" in await world.cli("leads", "split", one, two, "--yes")
    await eventually(lambda: _has(leads, 2))
    assert await people() == before
    shown = json.loads(await world.cli("leads", "show", two, "--json"))
    assert [each["lead_id"] for each in shown["kept_apart_from"]] == [one]
    assert [(each["loser_id"], bool(each["undone_at"])) for each in shown["merges"]] == [(two, True)]


async def _has(found: object, count: int) -> bool:
    assert callable(found)
    return len(await found()) == count
