"""The main flow on a whole installation: what goes in at any door arrives in every store; the demo's books close."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from confluent_kafka import Message

from schemas.codec import HEADER
from schemas.registry import registry
from tests.conftest import Stack, eventually
from tests.events import payload
from tests.integration.conftest import World, document, produced

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]  # the first of them starts the installation


async def test_one_form_over_http_reaches_every_store_and_is_answered_once(world: World, unique: str) -> None:
    email = f"ada-{unique}@example.com"
    form = document("e-1", unique, email=email, first_name="Ada", last_name="Lovelace", form_id="demo")
    again = document("e-2", unique, email=email, form_id="demo")
    for body in ([form], [form, again]):  # and its sender is not sure that it arrived
        answer = await world.http.post(f"{world.places['api']['url']}/v1/events", json=body, headers=world.api_headers)
        assert answer.status_code == httpx.codes.ACCEPTED, answer.text
        assert [item["status"] for item in answer.json()["events"]] == ["accepted"] * len(body)

    async def mailed() -> bool:
        return bool(await world.mails(email))

    async def synced() -> bool:
        lead, contact = await world.lead(unique), await world.contact(email)
        return bool(lead and contact and contact.get("leadstream_lead_id") == lead["lead_id"])

    async def analysed() -> bool:
        return {event["event_id"] for event in await world.events(unique)} >= {"e-1", "e-2"}

    for each in (mailed, synced, analysed, world.at_rest):
        await eventually(each)
    lead = await world.lead(unique)
    assert lead is not None
    assert (lead["email"], json.loads(lead["attributes"])["first_name"]) == (email, "Ada")
    history = await world.postgres.fetch(
        "SELECT event_id FROM lead_history WHERE tenant = $1 AND source NOT LIKE 'leadstream:%'", unique
    )
    assert sorted(row[0] for row in history) == ["e-1", "e-2"]
    events = [event for event in await world.events(unique) if event["event_id"] in ("e-1", "e-2")]
    assert {event["lead_id"] for event in events} == {lead["lead_id"]}
    assert len(events) == 2
    contact = await world.contact(email)
    assert contact is not None
    assert (contact["firstname"], contact["lastname"]) == ("Ada", "Lovelace")
    (mail,) = await world.mails(email)
    assert "Ada" in mail["subject"]
    rows = await world.clickhouse.query(
        "SELECT event_id FROM outcomes WHERE tenant = {t:String} AND what = 'duplicate'", t=unique
    )
    assert rows == [{"event_id": "e-1"}]

    story = json.loads(await world.cli("trace", "e-1", "--tenant", unique, "--json"))
    assert (story["kind"], story["lead_id"]) == ("event", lead["lead_id"])
    told = {(step["stage"], step["what"]) for step in story["steps"]}
    assert {("kafka", "received"), ("intake", "accepted"), ("intake", "duplicate"), ("crm-hubspot", "synced")} <= told
    assert {("campaigns", "triggered"), ("messages-email", "sent")} <= told
    assert json.loads(await world.cli("trace", email, "--tenant", unique, "--json"))["kind"] == "lead"
    assert email not in await world.cli("trace", "e-1", "--tenant", unique)  # values only when asked for
    await world.cli("trace", f"nobody-{unique}", expect=1)


async def arrives(world: World, tenant: str, event_id: str, first_name: str) -> None:
    async def there() -> bool:
        return any(event["event_id"] == event_id for event in await world.events(tenant))

    await eventually(there)
    lead = await world.lead(tenant)
    assert lead is not None
    assert json.loads(lead["attributes"])["first_name"] == first_name


async def test_kcat_sends_json(world: World, pipeline: Stack, unique: str) -> None:
    kcat = shutil.which("kcat") or shutil.which("kafkacat")
    if kcat is None:
        pytest.skip("kcat is not installed (Debian: apt install kcat)")
    line = orjson.dumps(document("e-kcat", unique, email=f"k-{unique}@example.com", first_name="Karl"))
    process = await asyncio.create_subprocess_exec(
        *(kcat, "-P", "-b", pipeline.kafka_bootstrap, "-t", "leads.received", "-k", unique), stdin=subprocess.PIPE
    )
    await process.communicate(line + b"\n")
    assert process.returncode == 0
    await arrives(world, unique, "e-kcat", "Karl")


async def test_confluent_kafka_sends_avro_in_confluent_framing(world: World, pipeline: Stack, unique: str) -> None:
    whole = payload("form_submitted", "e-avro", tenant=unique, email=f"c-{unique}@example.com", first_name="Cora")
    framed = b"\x00" + registry().events["form_submitted"].confluent_id.to_bytes(4, "big") + whole[HEADER:]
    await asyncio.to_thread(produced, pipeline, framed)
    await arrives(world, unique, "e-avro", "Cora")


async def test_curl_posts_a_form(world: World, unique: str) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    form = {"type": "form_submitted", "envelope": {"event_id": "e-curl", "tenant": unique}, "first_name": "Cleo"}
    form |= {"identifiers": {"anonymous_id": f"a-{unique}"}}
    address = f"{world.places['api']['url']}/v1/events"
    key = [word for name, value in world.api_headers.items() for word in ("-H", f"{name}: {value}")]
    words = [
        curl,
        "-sS",
        "--noproxy",
        "*",
        *key,
        "-H",
        "Content-Type: application/json",
        "-d",
        json.dumps(form),
        address,
    ]
    process = await asyncio.create_subprocess_exec(*words, stdout=subprocess.PIPE)
    out, _ = await process.communicate()
    assert json.loads(out)["accepted"] == 1
    await arrives(world, unique, "e-curl", "Cleo")


async def test_what_is_malformed_is_a_dead_letter_with_its_reason(world: World, pipeline: Stack, unique: str) -> None:
    good = payload("form_submitted", "e-good", tenant=unique, email=f"g-{unique}@example.com", first_name="Gus")
    broken = {
        "not_avro": b"hello",
        "not_json": b'{"type": ',
        "unknown_schema": b"\x00\x7f\xff\xff\xff" + b"x" * 20,
        "unknown_event_type": b'{"type": "form_submited"}',
        "no_identifier": payload("form_submitted", "e-1", tenant=unique),
        "absurd_time": payload("form_submitted", "e-1", tenant=unique, email="a@example.com", at=1),
        "invalid_field": orjson.dumps(document("e-1", unique, email="a@example.com", employees="many")),
    }
    records = await asyncio.to_thread(produced, pipeline, *broken.values(), good)
    await arrives(world, unique, "e-good", "Gus")
    for (reason, value), found in zip(broken.items(), records, strict=False):

        async def listed(found: Message = found) -> dict[str, Any] | None:
            return await world.dead(found)

        row = await eventually(listed)
        assert (row["stage"], row["reason"], row["size"]) == ("intake", reason, len(value))
        assert row["detail"]
    where = f"{records[3].topic()}/{records[3].partition()}/{records[3].offset()}"
    story = json.loads(await world.cli("trace", where, "--json"))
    assert story["kind"] == "record"
    assert "did you mean form_submitted?" in story["steps"][-1]["said"]
    refused = await world.http.post(
        f"{world.places['api']['url']}/v1/events",
        json=document("e", unique, email="nobody"),
        headers=world.api_headers,
    )
    assert refused.status_code == httpx.codes.BAD_REQUEST
    assert refused.json()["events"][0]["problems"][0]["path"] == "/identifiers/email"


async def test_lag_knows_every_group_and_partition(world: World) -> None:
    await eventually(world.at_rest)
    rows = json.loads(await world.cli("lag", "--json"))
    assert {row["group"] for row in rows} == {
        *("intake", "sink-clickhouse", "crm-hubspot", "enrichment", "campaigns", "messages-email")
    }
    received = [row for row in rows if row["group"] == "intake"]
    assert [row["partition"] for row in received] == list(range(8))
    assert sum(row["end"] for row in received) > 0
    assert all(row["lag"] == 0 for row in rows)


async def test_the_demonstration_closes_its_books(world: World, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    words = ("--events", "1500", "--seed", "7", "--rate", "0", "--quiet", "--json", str(file))
    await world.cli("demo", *words)
    found = json.loads(file.read_text("utf-8"))
    assert found["problems"] == []
    assert found["events_sent"] == found["received"] == 1500
    assert (found["lost"], found["lag_left"], found["messages_duplicate"]) == (0, 0, 0)
    assert found["accepted"] == found["unique_events"] == found["clickhouse_events"]
    assert found["duplicates"] == found["duplicates_sent"] > 0
    assert found["dead"] == found["malformed_sent"] > 0
    assert found["leads"] == found["clickhouse_leads"] == found["crm"]["hubspot"]["remote_records"] + found["erased"]
    assert found["enriched"] > 0
