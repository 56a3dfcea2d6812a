"""What costs a call: only what the CRM gets and does not have. What had a value and has none any more is cleared."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from infra.errors import Verdict
from infra.outcomes import Reason, What
from infra.postgres.leased_rows import Done
from sinks.crm import Synced, SyncFailed, SyncResult
from sinks.crm.fingerprints import fingerprint
from sinks.crm.sync_table import RecordWritten
from tests.sinks.crm.fake import FakeCrm

pytestmark = pytest.mark.integration

ADA = {"email": "ada@example.com", "title": "CTO", "last_touch_source": "web"}


async def calls(world: Any) -> int:
    count: int = (await world.stats())["calls"]
    return count


async def test_page_views_cost_no_call_and_no_outcome(world: Any) -> None:
    lead_id = await world.lead(**ADA)
    await world.sync().once()
    before = await calls(world)
    for version in range(2, 52):
        await world.lead(lead_id, version, **ADA, last_touch_at=version, custom={"page": str(version)})
        world.clock.forward(1)
        assert await world.sync().once() == 1
    assert await calls(world) == before
    assert [(o["what"], o["version"]) for o in world.outcomes] == [("synced", 1)]
    row = await world.row(lead_id)
    assert (row["wanted_version"], row["synced_version"], row["synced_at"]) == (51, 51, world.clock())
    assert row["remote_id"] == "1"


@pytest.mark.parametrize("change", [{"title": "CEO"}, {"last_touch_source": "ads"}, {"owner": "bob"}, {"score": 0.5}])
async def test_a_change_of_a_mapped_field_costs_one_call(world: Any, change: dict[str, Any]) -> None:
    lead_id = await world.lead(**ADA)
    await world.sync().once()
    before = await calls(world)
    await world.lead(lead_id, 2, **ADA | change)
    await world.sync().once()
    assert await calls(world) == before + 1
    assert (await world.row(lead_id))["synced_version"] == 2


async def test_known_and_new_leads_of_a_batch_are_two_calls_and_unchanged_ones_none(world: Any) -> None:
    known = [await world.lead(email=f"k{i}@example.com") for i in range(20)]
    await world.sync().once()
    before = await calls(world)
    for i, lead_id in enumerate(known):
        await world.lead(lead_id, 2, email=f"k{i}@example.com", **({"title": "CTO"} if i % 2 else {}))
    new = [await world.lead(email=f"n{i}@example.com") for i in range(20)]
    assert await world.sync().once() == 40
    assert await calls(world) == before + 2
    assert [(await world.row(lead_id))["synced_version"] for lead_id in known + new] == [2] * 20 + [1] * 20


async def test_what_had_a_value_is_cleared_and_a_users_own_value_is_kept(world: Any) -> None:
    lead_id = await world.lead(**ADA, first_name="Ada")
    await world.sync().once()
    user = {"id": "1", "properties": {"phone": "+491", "firstname": "Augusta"}}
    await world.simulator.post("/crm/v3/objects/contacts/batch/update", json={"inputs": [user]})
    await world.lead(lead_id, 2, email="ada@example.com", first_name=None, last_touch_source="web")
    await world.sync().once()
    contact = await world.contact(lead_id)
    assert (contact["jobtitle"], contact["firstname"], contact["phone"]) == ("", "", "+491")

    retyped = {"id": "1", "properties": {"jobtitle": "Countess"}}
    await world.simulator.post("/crm/v3/objects/contacts/batch/update", json={"inputs": [retyped]})
    await world.lead(lead_id, 3, email="ada@example.com", last_touch_source="ads")
    await world.sync().once()
    assert (await world.contact(lead_id))["jobtitle"] == "Countess", "it is cleared once"
    await world.lead(lead_id, 4, **ADA)
    await world.sync().once()
    await world.lead(lead_id, 5, email="ada@example.com", last_touch_source="web")
    await world.sync().once()
    assert (await world.contact(lead_id))["jobtitle"] == ""


async def test_fingerprints_have_no_values_and_an_erasure_leaves_none_of_them(world: Any) -> None:
    lead_id = await world.lead(**ADA)
    await world.sync().once()
    before = (await world.row(lead_id))["sent"]
    assert "jobtitle" in before
    assert not [value for value in ADA.values() if value in before]
    await world.lead(lead_id, 2)
    await world.erase(lead_id)
    await world.sync(erasure="anonymise").once()
    contact = await world.contact(lead_id)
    assert {value for value in contact.values() if value} == {lead_id}
    calls_before = await calls(world)
    await world.lead(lead_id, 3)
    await world.sync(erasure="anonymise").once()
    assert await calls(world) == calls_before


def test_a_fingerprint_depends_on_lead_name_and_value() -> None:
    one, two = str(uuid.uuid4()), str(uuid.uuid4())
    base = fingerprint(one, {"a": "x", "b": "x"})
    assert base == fingerprint(one.upper(), {"b": "x", "a": "x"})
    assert base["a"] != fingerprint(one, {"a": "y"})["a"]
    assert base["a"] != fingerprint(two, {"a": "x"})["a"]
    assert base != fingerprint(one, {"a": "x"})


class Crm(FakeCrm):
    """Sends the title only."""

    def properties(self, snapshot: Any) -> dict[str, str]:
        return {"title": snapshot.attributes["title"]}


@pytest.mark.parametrize(
    "failed", [SyncFailed(Verdict.RETRY, Reason.TIMEOUT), SyncFailed(Verdict.DEAD, Reason.REJECTED)]
)
async def test_after_a_failed_call_the_value_from_before_is_sent_again(world: Any, failed: SyncFailed) -> None:
    """The failed call may have had its effect, so that the CRM may not have what was sent last."""
    results: list[SyncResult] = [Synced("1"), failed, Synced("1")]
    crm = Crm(lambda _: results[len(crm.sent) - 1])
    lead_id = await world.lead(title="CTO")
    for version, title in ((2, "CEO"), (3, "CTO")):
        await world.sync(crm).once()
        await world.lead(lead_id, version, title=title)
        world.clock.forward(60)
    await world.sync(crm).once()
    assert crm.sent == [(lead_id, 1), (lead_id, 2), (lead_id, 3)]


async def test_after_a_crash_during_a_call_the_value_from_before_is_sent_again(world: Any) -> None:
    crm = Crm()
    lead_id = await world.lead(title="CTO")
    await world.sync(crm).once()
    await world.lead(lead_id, 2, title="CEO")
    await world.table().claim(1)  # this worker crashes in its call
    await world.lead(lead_id, 3, title="CTO")
    world.clock.forward(61)
    await world.sync(crm).once()
    assert crm.sent == [(lead_id, 1), (lead_id, 3)]
    await world.lead(lead_id, 4, title="CTO")
    await world.sync(crm).once()
    assert len(crm.sent) == 2


async def test_an_older_result_that_is_written_late_does_not_replace_what_was_sent_last(world: Any) -> None:
    crm = Crm()
    lead_id = await world.lead(title="CTO")
    table = world.table()
    lost = await table.claim(1)
    world.clock.forward(61)
    await world.lead(lead_id, 2, title="CEO")
    await world.sync(crm).once()
    old = fingerprint(lead_id, {"title": "CTO"})
    await table.finish(lost, [(lost.rows[0], Done(What.SYNCED, version=1, value=RecordWritten("1", old)))])
    await world.lead(lead_id, 3, title="CTO")
    await world.sync(crm).once()
    assert crm.sent == [(lead_id, 2), (lead_id, 3)]
