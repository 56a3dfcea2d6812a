"""Leads that were merged, deleted or erased, over a real Postgres and HubSpot's simulator."""

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


async def test_a_merged_lead_vanishes_before_the_survivor_takes_its_address(world: Any) -> None:
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

    await world.want(loser, 2)  # what intake publishes about the loser, late or redelivered
    await world.sync().once()
    assert await world.row(loser) is None
    assert (await world.stats())["records"] == 1


async def test_the_survivor_takes_over_the_losers_record_if_it_has_none(world: Any) -> None:
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


async def test_a_loser_whose_remote_id_was_never_noted_is_found_by_its_key(world: Any) -> None:
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


async def test_an_erased_lead_keeps_its_record_and_nothing_in_it(world: Any) -> None:
    lead_id = await world.lead(email="ada@example.com", first_name="Ada")
    await world.sync().once()
    await world.lead(lead_id, 2)
    await world.erase(lead_id)
    await world.sync().once()
    contact = await world.contact(lead_id)
    assert {value for value in contact.values() if value} == {lead_id}
    assert (await world.stats())["records"] == await world.rows() == 1


async def test_a_lead_in_the_way_that_failed_to_retire_does_not_hold_the_survivor(world: Any) -> None:
    survivor, loser = await world.lead(first_name="Ada"), await world.lead(last_name="L")
    crm = FakeCrm()
    crm.retire = lambda gone: _answers([SyncFailed(Verdict.RETRY, Reason.CONFLICT)] * len(gone))  # type: ignore[method-assign]
    await world.merge(loser, survivor)
    await world.sync(crm).once()
    assert (await world.row(survivor))["synced_version"] == 1
    assert (await world.row(loser))["last_error"] == "conflict"


async def test_a_lead_that_the_crm_does_not_retire_is_parked_until_a_newer_version_is_wanted(world: Any) -> None:
    survivor, loser = await world.lead(), await world.lead()
    crm = FakeCrm()
    crm.retire = lambda gone: _answers([SyncFailed(Verdict.DEAD, Reason.REJECTED)] * len(gone))  # type: ignore[method-assign]
    await world.merge(loser, survivor)
    assert await world.sync(crm).once() == 2
    row = await world.row(loser)
    assert (row["last_error"], row["next_attempt_at"]) == ("rejected", INFINITY)
    world.clock.forward(365 * 86_400)
    assert await world.sync(crm).once() == 0
    await world.want(loser, 2)
    assert await world.sync().once() == 1
    assert await world.row(loser) is None


async def _answers(results: Sequence[SyncResult]) -> Sequence[SyncResult]:
    return results
