"""Leads that were merged, deleted or erased, with a real Postgres and HubSpot's simulator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from infra.errors import Verdict
from infra.outcomes import Reason, What
from infra.postgres.leased_rows import Done
from infra.postgres.pool import INFINITY
from sinks.crm import SyncFailed, SyncResult
from sinks.crm.sync_table import RecordWritten
from tests.sinks.crm.fake import FakeCrm

START = 1_770_000_000_000_000

pytestmark = pytest.mark.integration


async def test_a_merged_leads_record_is_retired_before_the_survivor_gets_its_address(world: Any) -> None:
    survivor = await world.lead(first_name="Ada")
    loser = await world.lead(email="ada@example.com")
    await world.sync().once()
    assert (await world.stats())["records"] == 2

    await world.merge(loser, survivor)
    await world.write(survivor, 2, first_name="Ada", email="ada@example.com")
    await world.want(survivor, 2)  # the loser's row is found by the survivor's
    await world.sync().once()

    stats = await world.stats()
    assert (stats["records"], stats["merges"], stats["rejected"]) == (1, 1, 0)
    assert (await world.contact(survivor))["email"] == "ada@example.com"
    assert await world.row(loser) is None
    assert (await world.row(survivor))["synced_version"] == 2
    assert await world.rows() == stats["records"]

    await world.want(loser, 2)  # what intake publishes about the loser, delayed or redelivered
    await world.sync().once()
    assert await world.row(loser) is None
    assert (await world.stats())["records"] == 1


async def test_a_survivor_without_a_record_gets_the_losers_record(world: Any) -> None:
    loser = await world.lead(email="ada@example.com")
    await world.sync().once()
    survivor = await world.lead(first_name="Ada", email="ada@example.com")
    await world.merge(loser, survivor)
    await world.want(loser, 2)
    await world.sync().once()
    stats = await world.stats()
    assert (stats["records"], stats["creates"], stats["merges"], stats["archived"]) == (1, 1, 0, 0)
    assert (await world.row(survivor))["remote_id"] == "1"
    assert await world.rows() == 1


async def test_a_loser_whose_remote_id_is_unknown_is_found_by_its_key(world: Any) -> None:
    survivor, loser = await world.lead(first_name="Ada"), await world.lead(email="ada@example.com")
    await world.sync().once()
    await world.pool.execute(  # as after a crash between the call and the write-back
        "UPDATE crm_sync SET remote_id = '', synced_version = 0 WHERE destination = $1 AND lead_id = $2",
        world.destination,
        loser,
    )
    await world.merge(loser, survivor)
    await world.sync().once()
    assert (await world.stats())["records"] == await world.rows() == 1


async def test_a_survivor_waits_for_its_loser_that_another_worker_has_leased(world: Any) -> None:
    loser = await world.lead(email="ada@example.com")
    await world.sync().once()
    await world.lead(loser, 2, email="ada@example.com")
    table = world.table()
    other = await table.claim(1)
    survivor = await world.lead(email="ada@example.com")
    await world.merge(loser, survivor)
    await world.sync().once()
    assert (await world.row(survivor))["synced_version"] == 0
    await table.finish(other, [(row, Done(What.SYNCED, version=2, value=RecordWritten("1"))) for row in other.rows])
    world.clock.forward(1)
    await world.sync().once()
    assert (await world.row(survivor))["synced_version"] == 1
    assert (await world.stats())["records"] == await world.rows() == 1


async def test_a_deleted_lead_is_archived(world: Any) -> None:
    lead_id = await world.lead(email="a@example.com")
    await world.sync().once()
    await world.pool.execute("DELETE FROM leads WHERE lead_id = $1", lead_id)
    await world.want(lead_id, 2)
    await world.sync().once()
    assert (await world.stats())["records"] == await world.rows() == 0


async def test_the_record_of_an_erased_lead_and_of_those_merged_into_it_is_deleted_for_good(world: Any) -> None:
    lead_id, loser = await world.lead(email="ada@example.com"), await world.lead(email="ada@example.org")
    await world.sync().once()
    await world.lead(lead_id, 2)
    await world.merge(loser, lead_id)
    await world.want(loser, 2)
    for each in (lead_id, loser):
        await world.erase(each)
    await world.sync().once()
    stats = await world.stats()
    assert (stats["records"], stats["gdpr_deletes"], stats["merges"]) == (0, 2, 0)
    row = await world.row(lead_id)
    assert (row["remote_id"], row["sent"], row["synced_version"], await world.rows()) == ("", None, 2, 1)
    done = await world.pool.fetch(
        "SELECT lead_id::text, detail FROM erasures WHERE store = $1 AND done_at IS NOT NULL",
        f"crm-{world.destination}",
    )
    assert {tuple(row) for row in done} == {(each, "record deleted") for each in (lead_id, loser)}
    await world.lead(lead_id, 3)
    await world.sync().once()
    assert (await world.stats())["records"] == 0, "a later version of the empty lead makes no record"


async def test_an_erased_lead_that_was_never_written_makes_no_record(world: Any) -> None:
    lead_id = await world.lead()
    await world.erase(lead_id)
    await world.sync().once()
    assert (await world.stats())["creates"] == 0
    assert (await world.row(lead_id))["synced_version"] == 1


async def test_a_lead_without_consent_is_not_written(world: Any) -> None:
    withdrawn = await world.lead(email="ada@example.com", consent={"crm": "withdrawn", "marketing": "granted"})
    await world.lead(email="bob@example.com", consent={"marketing": "withdrawn"})
    await world.sync().once()
    assert (await world.stats())["creates"] == 1
    assert [(o["lead_id"], o["reason"]) for o in world.outcomes if o["what"] == "skipped"] == [
        (withdrawn, "no_consent")
    ]
    await world.lead(withdrawn, 2, email="ada@example.com", consent={"crm": "granted"})
    await world.sync().once()
    assert (await world.stats())["creates"] == 2


async def test_by_setting_an_erased_lead_keeps_an_empty_record(world: Any) -> None:
    lead_id = await world.lead(email="ada@example.com", first_name="Ada")
    await world.sync().once()
    await world.lead(lead_id, 2)
    await world.erase(lead_id)
    await world.sync(erasure="anonymise").once()
    contact = await world.contact(lead_id)
    assert {value for value in contact.values() if value} == {lead_id}
    assert (await world.stats())["records"] == await world.rows() == 1


async def test_a_loser_that_failed_to_retire_does_not_block_the_survivor(world: Any) -> None:
    survivor, loser = await world.lead(first_name="Ada"), await world.lead(last_name="L")
    crm = FakeCrm()
    crm.retire = lambda leads: _returning([SyncFailed(Verdict.RETRY, Reason.CONFLICT)] * len(leads))  # type: ignore[method-assign]
    await world.merge(loser, survivor)
    await world.sync(crm).once()
    assert (await world.row(survivor))["synced_version"] == 1
    assert (await world.row(loser))["last_error"] == "conflict"


async def test_a_lead_that_the_crm_does_not_retire_is_parked_until_a_newer_version_is_wanted(world: Any) -> None:
    survivor, loser = await world.lead(), await world.lead()
    crm = FakeCrm()
    crm.retire = lambda leads: _returning([SyncFailed(Verdict.DEAD, Reason.REJECTED)] * len(leads))  # type: ignore[method-assign]
    await world.merge(loser, survivor)
    assert await world.sync(crm).once() == 2
    row = await world.row(loser)
    assert (row["last_error"], row["next_attempt_at"]) == ("rejected", INFINITY)
    world.clock.forward(365 * 86_400)
    assert await world.sync(crm).once() == 0
    await world.want(loser, 2)
    assert await world.sync().once() == 1
    assert await world.row(loser) is None


async def _returning(results: Sequence[SyncResult]) -> Sequence[SyncResult]:
    return results
