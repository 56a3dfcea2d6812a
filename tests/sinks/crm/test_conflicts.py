"""A lead in conflict with the contact of another lead: parked alone, named; no duplicate, no overwriting."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import pytest

from infra.errors import DependencyUnavailable
from infra.outcomes import Reason
from infra.postgres.leased_pause import Pause
from infra.postgres.leased_rows import Done, Parked
from infra.postgres.pool import INFINITY
from infra.retry import Backoff
from sinks.crm import hubspot
from sinks.crm.reconciler import Reconciler
from sinks.crm.sync_table import CrmSyncTable, Owner

pytestmark = pytest.mark.integration

BASE = "/crm/v3/objects/contacts"
YEAR_S = 365 * 86_400


async def merge(world: Any, primary: str, merged: str) -> None:
    """Merge two contacts as a HubSpot user does."""
    response = await world.simulator.post(f"{BASE}/merge", json={"primaryObjectId": primary, "objectIdToMerge": merged})
    assert response.status_code == 200


async def remote_id(world: Any, lead_id: str) -> str:
    found: str = (await world.row(lead_id))["remote_id"]
    return found


def parked(world: Any) -> list[tuple[str, str, str]]:
    return [(o["lead_id"], o["reason"], o["detail"]) for o in world.outcomes if o["what"] == "parked"]


async def test_an_additional_address_of_another_leads_contact_parks_one_lead_and_names_the_contact(world: Any) -> None:
    ann = await world.lead(email="ann@example.com")
    await world.sync().once()
    contact = await remote_id(world, ann)
    additional = {"id": contact, "properties": {"hs_additional_emails": "ada@example.com;ada@example.org"}}
    await world.simulator.post(f"{BASE}/batch/update", json={"inputs": [additional]})

    ada = await world.lead(email="ADA@example.com")
    others = [await world.lead(email=f"person{i}@example.com") for i in range(5)]
    sync = world.sync()
    await sync.once()
    detail = f"CONFLICT: record {contact} belongs to lead {ann}"
    assert parked(world) == [(ada, "conflict", detail)]
    row = await world.row(ada)
    assert (row["last_error"], row["detail"], row["next_attempt_at"]) == ("conflict", detail, INFINITY)
    assert [(await world.row(lead_id))["synced_version"] for lead_id in others] == [1] * 5
    world.clock.forward(YEAR_S)
    assert await sync.once() == 0, "it is not retried for ever"

    await world.lead(ada, 2, email="new@example.com")
    assert await sync.once() == 1
    row = await world.row(ada)
    assert (row["synced_version"], row["last_error"], row["detail"]) == (2, "", "")


async def test_it_is_due_again_when_the_other_lead_gives_up_the_address(world: Any) -> None:
    ann, ada = await world.lead(email="a@example.com"), str(uuid.uuid4())
    await world.sync().once()
    await world.lead(ada, email="a@example.com")
    sync = world.sync()
    await sync.once()
    assert (await world.row(ada))["next_attempt_at"] == INFINITY
    await world.lead(ann, 2, email="ann@example.com")
    await sync.once()
    assert await sync.once() == 1
    assert (await world.contact(ada))["email"] == "a@example.com"


@pytest.mark.parametrize("fate", ["merged", "deleted"])
async def test_it_is_synced_when_the_other_lead_is_merged_or_deleted(world: Any, fate: str) -> None:
    ann, bob = await world.lead(email="a@example.com"), await world.lead(first_name="Bob")
    await world.sync().once()
    ada = await world.lead(email="a@example.com")
    sync = world.sync()
    await sync.once()
    assert (await world.row(ada))["next_attempt_at"] == INFINITY
    if fate == "merged":
        await world.merge(ann, ada)
    else:
        await world.pool.execute("DELETE FROM leads WHERE lead_id = $1", ann)
    await world.want(ann, 2)
    await sync.once()
    await sync.once()
    assert (await world.row(ada))["synced_version"] == 1
    assert (await world.contact(ada))["email"] == "a@example.com"
    assert await world.contact(bob) is not None


async def test_while_the_other_lead_has_work_to_do_it_is_retried(world: Any) -> None:
    ann = await world.lead(email="a@example.com")
    await world.sync().once()
    await world.lead(ann, 2, email="ann@example.com")
    other = await world.table().claim(1)  # another worker writes it
    ada = await world.lead(email="a@example.com")
    sync = world.sync()
    await sync.once()
    row = await world.row(ada)
    assert (row["last_error"], row["next_attempt_at"] < INFINITY) == ("conflict", True)
    await world.table().release(other, other.rows)
    for _ in range(2):
        world.clock.forward(5)
        await sync.once()
    assert (await world.contact(ada))["email"] == "a@example.com"
    assert (await world.contact(ann))["email"] == "ann@example.com"


async def test_two_leads_that_wait_for_one_another_are_not_retried_for_ever(world: Any) -> None:
    ann, bob = await world.lead(email="a@example.com"), await world.lead(email="b@example.com")
    await world.sync().once()
    await world.lead(ann, 2, email="b@example.com")
    await world.lead(bob, 2, email="a@example.com")
    sync = world.sync()
    for _ in range(30):
        await sync.once()
        world.clock.forward(600)
    calls = (await world.stats())["calls"]
    assert await sync.once() == 0
    assert (await world.stats())["calls"] == calls
    assert {lead_id for lead_id, _, _ in parked(world)} == {ann, bob}


@pytest.mark.parametrize("title", ["CTO", ""])
@pytest.mark.parametrize("email", ["ada@example.com", "ada@example.org", ""])
async def test_contacts_that_a_user_merged_stay_one(world: Any, email: str, title: str) -> None:
    """Case c04: whatever the update of the merged contact's lead is."""
    winner = await world.lead(email="ada.l@example.com", title="Countess")
    loser = await world.lead(email="ada@example.com", first_name="Ada")
    fine = await world.lead(email="bob@example.com")
    await world.sync().once()
    contact = await remote_id(world, winner)
    await merge(world, contact, await remote_id(world, loser))
    before = await world.contact(winner)

    await world.lead(loser, 2, email=email, title=title or None)
    await world.lead(fine, 2, email="bob@example.com", title="COO")
    sync = world.sync()
    await sync.once()
    assert (await world.stats())["records"] == 2, "no third contact"
    assert await world.contact(winner) == before, "the winner's values are not overwritten"
    assert parked(world) == [(loser, "conflict", f"MERGED: record {contact} belongs to lead {winner}")]
    assert (await world.row(fine))["synced_version"] == 2
    world.clock.forward(YEAR_S)
    assert await sync.once() == 0

    await world.merge(loser, winner)  # the right answer: the two leads are one
    await world.lead(winner, 2, email="ada.l@example.com", title="CTO")
    await world.want(loser, 3)
    await sync.once()
    assert await world.row(loser) is None
    assert (await world.contact(winner))["jobtitle"] == "CTO"
    assert (await world.stats())["records"] == 2


@pytest.mark.parametrize("fate", ["merged", "deleted"])
async def test_retiring_a_lead_does_not_touch_the_contact_that_its_own_was_merged_into(world: Any, fate: str) -> None:
    winner, loser = await world.lead(email="a@example.com"), await world.lead(email="b@example.com")
    third = await world.lead(email="c@example.com")
    await world.sync().once()
    await merge(world, await remote_id(world, winner), await remote_id(world, loser))
    if fate == "merged":
        await world.merge(loser, third)
    else:
        await world.pool.execute("DELETE FROM leads WHERE lead_id = $1", loser)
    await world.want(loser, 2)
    await world.sync().once()
    assert await world.row(loser) is None
    assert (await world.contact(winner))["email"] == "a@example.com"
    assert (await world.contact(third))["email"] == "c@example.com"
    assert (await world.stats())["records"] == 2


async def test_a_deleted_contact_is_created_again(world: Any) -> None:
    lead_id = await world.lead(email="a@example.com", title="CTO")
    await world.sync().once()
    await world.simulator.post(f"{BASE}/batch/archive", json={"inputs": [{"id": await remote_id(world, lead_id)}]})
    await world.lead(lead_id, 2, email="a@example.com", title="CTO", first_name="Ada")
    await world.sync().once()
    contact = await world.contact(lead_id)
    assert (contact["jobtitle"], contact["firstname"]) == ("CTO", "Ada")
    assert (await world.row(lead_id))["remote_id"] == "2"


async def test_a_contact_whose_lead_id_a_user_removed_is_found_by_its_contact_id(world: Any) -> None:
    lead_id = await world.lead(email="a@example.com")
    await world.sync().once()
    removed = {"id": "1", "properties": {"leadstream_lead_id": ""}}
    await world.simulator.post(f"{BASE}/batch/update", json={"inputs": [removed]})
    await world.lead(lead_id, 2, email="a@example.org")
    await world.sync().once()
    assert (await world.contact(lead_id))["email"] == "a@example.org"
    assert (await world.stats())["records"] == 1


@pytest.mark.parametrize("owner", ["", "see Bob's list", str(uuid.uuid4()), "{0198c1f2-7b1e-7c9a-8d7e-00000000000a}"])
async def test_a_contact_of_no_lead_of_ours_is_named_without_its_text(world: Any, owner: str) -> None:
    """A lead that has a contact and wants the address of a second one, which a user has made."""
    lead_id = await world.lead(email="a@example.com")
    await world.sync().once()
    made = {"idProperty": "email", "id": "b@example.com", "properties": {"leadstream_lead_id": owner}}
    await world.simulator.post(f"{BASE}/batch/upsert", json={"inputs": [made]})
    await world.lead(lead_id, 2, email="b@example.com")
    await world.sync().once()
    ((_, reason, detail),) = parked(world)
    assert reason == "conflict"
    assert detail.startswith("CONFLICT: record 2 belongs to ")
    assert not owner or owner not in detail
    assert (await world.stats())["records"] == 2


async def test_a_lead_of_another_tenant_is_not_named(world: Any) -> None:
    ann = await world.lead(email="a@example.com")
    await world.sync().once()
    await world.pool.execute("UPDATE leads SET tenant = 'other' WHERE lead_id = $1", ann)
    await world.lead(email="a@example.com")
    await world.sync().once()
    ((_, _, detail),) = parked(world)
    assert detail == "CONFLICT: record 1 belongs to a lead of another tenant"


async def test_an_unavailable_postgres_does_not_discard_the_results_of_the_call(world: Any) -> None:
    class Table(CrmSyncTable):
        async def owners(self, lead_ids: Sequence[str]) -> dict[str, Owner]:
            raise DependencyUnavailable("Postgres", f"test of {len(lead_ids)}")

    await world.lead(email="a@example.com")
    await world.sync().once()
    same, other = await world.lead(email="a@example.com"), await world.lead(email="b@example.com")
    table = Table(world.pool, world.destination, lease_s=60, clock=world.clock)
    lease = await table.claim(100)
    lease.begin(60, world.clock())
    crm = hubspot.connect(hubspot.Config(token="pat-test"), world.http)
    reconciler = Reconciler(table, crm, Pause("crm", "hubspot", Backoff(1, 5), world.clock), "crm")
    settled = {row.key: result for row, result in await reconciler.handle(lease)}
    assert isinstance(settled[other], Done)
    parked_row = settled[same]
    assert isinstance(parked_row, Parked)
    assert (parked_row.reason, parked_row.until) == (Reason.CONFLICT, None)
