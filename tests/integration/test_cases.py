"""Inputs that failed once, on a running installation, each with the right result. The names are those of the cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from confluent_kafka import Producer

from infra.clock import now_us
from tests.conftest import Stack, eventually
from tests.events import HOUR, payload, record
from tests.integration.conftest import World, produced

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

MINUTE = 60_000_000


def event(kind: str, event_id: str, tenant: str, **own: Any) -> dict[str, Any]:
    own = {"at": now_us()} | own
    return {"type": kind} | record(kind, event_id, tenant=tenant, **own)


async def post(world: World, body: Any, content_type: str = "application/json", **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    url = f"{world.places['api']['url']}/v1/events"
    return await world.http.post(
        url, content=content, headers={"Content-Type": content_type} | world.api_headers | headers
    )


async def accept(world: World, tenant: str, *events: dict[str, Any]) -> None:
    """Send events one after the other and wait until intake has accepted each."""
    for one in events:
        answer = await post(world, one)
        assert answer.status_code == httpx.codes.ACCEPTED, answer.text
        await history(world, tenant, one["envelope"]["event_id"])


async def history(world: World, tenant: str, event_id: str) -> None:
    async def there() -> bool:
        query = "SELECT count(*) FROM lead_history WHERE tenant = $1 AND event_id = $2"
        return bool(await world.postgres.fetchval(query, tenant, event_id))

    await eventually(there)


async def attributes(world: World, tenant: str) -> dict[str, Any]:
    lead = await world.lead(tenant)
    assert lead is not None
    return dict(json.loads(lead["attributes"]))


async def outcome(world: World, event_id: str, tenant: str, stage: str) -> dict[str, Any]:
    async def there() -> list[dict[str, Any]]:
        statement = (
            "SELECT what, reason FROM outcomes WHERE event_id = {e:String} AND tenant = {t:String}"
            " AND stage = {s:String}"
        )
        return await world.clickhouse.query(statement, e=event_id, t=tenant, s=stage)

    found: list[dict[str, Any]] = await eventually(there)
    return found[0]


async def dead(world: World, place: str) -> dict[str, Any]:
    async def there() -> dict[str, Any] | None:
        topic, partition, offset = place.split("/")
        rows = await world.clickhouse.query(
            "SELECT reason, detail, sender, event_id FROM dead_letters"
            " WHERE topic = {t:String} AND partition = {p:Int32} AND offset = {o:Int64}",
            t=topic,
            p=int(partition),
            o=int(offset),
        )
        return rows[0] if rows else None

    found: dict[str, Any] = await eventually(there)
    return found


async def test_i1_a_consent_without_purpose_is_refused_and_an_erasure_goes_on(world: World, unique: str) -> None:
    who = {"email": f"i1-{unique}@example.com"}
    wrong = event("consent_changed", "i-1", unique, purpose="", status="granted", **who)
    answer = await post(world, wrong)
    assert answer.status_code == httpx.codes.BAD_REQUEST
    assert answer.json()["events"][0]["problems"][0]["path"] == "/purpose"
    odd = event("lead_updated", "i-2", unique, custom={".": "a", "a.b": "b", " ": "c"}, **who)
    erased = event("lead_erased", "i-3", unique, reason="request", **who)
    await accept(world, unique, odd, erased)
    # An enrichment that was under way may have added keys of its own since.
    assert not {".", "a.b", " "} & (await attributes(world, unique)).get("custom", {}).keys()


async def test_b2_a_header_that_fills_the_topic_is_dropped(world: World, pipeline: Stack, unique: str) -> None:
    value = payload("form_submitted", "b-2", tenant=unique, email=f"b2-{unique}@example.com", at=now_us())
    for headers in ([("traceparent", b"0" * 4_190_000)], [("traceparent", b"00-1"), *[("h", b"x")] * 10_000]):
        producer = Producer({"bootstrap.servers": pipeline.kafka_bootstrap, "message.max.bytes": 4_300_000})
        producer.produce("leads.received", value, headers=headers)
        assert producer.flush(30) == 0
    await history(world, unique, "b-2")


@pytest.mark.parametrize("bad", [b'{"score": NaN}', b'{"title": "Great offer \\ud83d"}'])
async def test_i2_one_bad_element_of_an_array_costs_itself(world: World, unique: str, bad: bytes) -> None:
    good = orjson.dumps(event("page_viewed", "i-ok", unique, anonymous_id="anon-77", url="/pricing"))
    answer = await post(world, b"[" + good + b"," + bad + b"," + good.replace(b"i-ok", b"i-also") + b"]")
    assert answer.status_code == httpx.codes.MULTI_STATUS
    items = answer.json()["events"]
    assert [item["status"] for item in items] == ["accepted", "rejected", "accepted"]
    assert items[1]["index"] == 1


async def test_i3_text_plain_is_accepted(world: World, unique: str) -> None:
    one = event("page_viewed", "i-3", unique, anonymous_id="anon-1", url="/")
    assert (await post(world, one, "text/plain;charset=UTF-8")).status_code == httpx.codes.ACCEPTED


async def test_i4_another_event_under_a_used_id_is_visible(world: World, unique: str) -> None:
    who = {"email": f"i4-{unique}@example.com"}
    form = event("form_submitted", "order-1001", unique, form_id="other", first_name="Ada", **who)
    await accept(world, unique, form)
    meeting = event("meeting_booked", "order-1001", unique, starts_at=now_us(), **who)
    form["envelope"] |= {"occurred_at": now_us(), "context": {"retry": "1"}}
    items = (await post(world, [meeting, form])).json()["events"]

    letter = await dead(world, f"{items[0]['topic']}/{items[0]['partition']}/{items[0]['offset']}")
    assert (letter["reason"], letter["event_id"]) == ("event_id_reused", "order-1001")
    assert (await outcome(world, "order-1001", unique, "intake"))["what"] == "duplicate"
    assert "event_id_reused" in await world.cli("trace", "order-1001", "--tenant", unique)
    listed = json.loads(await world.cli("dead", "list", "--json", "--reason", "event_id_reused"))
    assert [each["sender"] for each in listed if each["tenant"] == unique] == [f"{unique}/web"]


async def test_i7_a_wrong_clock_does_not_win_and_does_not_survive_an_erasure(world: World, unique: str) -> None:
    who = {"email": f"i7-{unique}@example.com"}
    ahead = event("lead_updated", "i-1", unique, at=now_us() + 20 * HOUR, title="Wrong", **who)
    await accept(world, unique, ahead, event("lead_updated", "i-2", unique, title="Right", **who))
    assert (await attributes(world, unique))["title"] == "Right"
    await accept(world, unique, event("lead_erased", "i-3", unique, reason="request", **who))
    assert await attributes(world, unique) == {}


async def test_i8_a_byte_order_mark_is_skipped(world: World, unique: str, tmp_path: Path) -> None:
    lines = [orjson.dumps(event("lead_created", f"i-{n}", unique, email=f"{n}-{unique}@example.com")) for n in range(2)]
    file = tmp_path / "events.ndjson"
    file.write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines))
    await world.cli("produce", str(file))
    for number in range(2):
        await history(world, unique, f"i-{number}")


async def test_i12_a_flood_of_one_sender_does_not_stop_the_others(world: World, pipeline: Stack, unique: str) -> None:
    producer = Producer({"bootstrap.servers": pipeline.kafka_bootstrap})
    for number in range(20_000):
        producer.produce("leads.received", b"\x07%d" % number, headers={"source": f"broken-{unique}"})
        producer.poll(0)
    assert producer.flush(60) == 0
    produced(pipeline, payload("lead_updated", "i-12", tenant=unique, email=f"i12-{unique}@example.com", at=now_us()))
    await history(world, unique, "i-12")

    async def all_dead() -> bool:
        statement = "SELECT count() AS n FROM dead_letters WHERE sender = {s:String}"
        return bool((await world.clickhouse.query(statement, s=f"broken-{unique}"))[0]["n"] == 20_000)

    await eventually(all_dead)
    state = json.loads((pipeline.home / "stack.json").read_text("utf-8"))
    assert [p["state"] for p in state["processes"] if p["name"].startswith("intake")] == ["ready", "ready"]


async def test_m1_m2_m3_mails(world: World, unique: str) -> None:
    """IDNA 2008 in the address; nothing for an old import; no blank name in the subject."""
    sharp = {"email": f"info-{unique}@fa\u00df.example"}
    blank = {"email": f"blank-{unique}@example.com"}
    old = event("form_submitted", "m-2", unique, at=now_us() - 5 * 365 * 24 * HOUR, email=f"old-{unique}@example.com")
    await accept(
        world,
        unique,
        event("form_submitted", "m-1", unique, form_id="demo", first_name="Bob", **sharp),
        old | {"form_id": "demo"},
        event("lead_created", "m-3", unique, first_name="Ada", company="Example Ltd", at=now_us() - MINUTE, **blank),
        event("form_submitted", "m-4", unique, form_id="demo", first_name=" ", company="\u00a0", **blank),
    )

    async def mailed(to: str) -> list[dict[str, Any]]:
        return await world.mails(to)

    assert await eventually(lambda: mailed(f"info-{unique}@xn--fa-hia.example"))
    (mail,) = await eventually(lambda: mailed(f"blank-{unique}@example.com"))
    assert mail["subject"] == "Ada, your demonstration"
    assert await outcome(world, "m-2", unique, "campaigns") == {"what": "skipped", "reason": "expired"}
    assert await mailed(f"old-{unique}@example.com") == []


async def test_c1_an_echo_does_not_take_a_field_over(world: World, unique: str) -> None:
    who = {"email": f"c1-{unique}@example.com"}
    crm = {"crm": "hubspot", "record_id": "501"}
    start = now_us() - HOUR
    await accept(
        world,
        unique,
        event("lead_updated", "c-1", unique, at=start, title="CTO", source="app", **who),
        event("crm_record_changed", "c-2", unique, at=start + 5 * MINUTE, title="CTO", source="hubspot", **crm, **who),
        event("lead_updated", "c-3", unique, at=start + 30 * MINUTE, title="CEO", source="app", **who),
        event("crm_record_changed", "c-4", unique, at=start + 6 * MINUTE, title="CTO", source="hubspot", **crm, **who),
    )
    assert (await attributes(world, unique))["title"] == "CEO"


async def test_c2_a_value_cleared_in_the_crm_is_cleared(world: World, unique: str) -> None:
    who = {"email": f"c2-{unique}@example.com", "crm": "hubspot", "record_id": "501"}
    first = event("crm_record_changed", "c-1", unique, at=now_us() - HOUR, title="CTO", status="customer", **who)
    empty = event("crm_record_changed", "c-2", unique, at=now_us() - MINUTE, title="", status="", **who)
    await accept(world, unique, first, empty)
    assert (await attributes(world, unique))["title"] == "CTO"
    await accept(world, unique, event("crm_record_changed", "c-3", unique, cleared=["title"], **who))
    known = await attributes(world, unique)
    assert ("title" in known, known["status"]) == (False, "customer")


async def test_the_context_of_an_event_is_kept(world: World, unique: str) -> None:
    one = event("page_viewed", "x-1", unique, anonymous_id=f"a-{unique}", url="/")
    one["envelope"]["context"] = {"utm_source": "newsletter", "user_agent": "Mozilla/5.0"}
    await accept(world, unique, one)
    stored = await world.postgres.fetchval("SELECT context FROM lead_history WHERE tenant = $1", unique)
    assert json.loads(stored) == one["envelope"]["context"]

    async def seen() -> list[dict[str, Any]]:
        statement = "SELECT context['utm_source'] AS source FROM lead_events WHERE tenant = {t:String}"
        return await world.clickhouse.query(statement, t=unique)

    assert await eventually(seen) == [{"source": "newsletter"}]
