"""The bytes of a call's snapshots are bounded; every lead is synced all the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from infra.postgres.leased import LeasedWork
from infra.postgres.leased_pause import Pause
from infra.retry import Backoff
from sinks.crm import RetiredLead, Snapshot, Synced, SyncResult
from sinks.crm.reconciler import Reconciler
from sinks.crm.sync_table import SyncRow
from tests.sinks.crm.fake import FakeCrm

pytestmark = pytest.mark.integration

KB = 1024


class Measured(FakeCrm):
    """Notes the calls: the ids, and the bytes of the attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: list[int] = []
        self.calls: list[tuple[str, list[str]]] = []

    async def upsert(self, records: Sequence[Snapshot]) -> Sequence[SyncResult]:
        self.bytes.append(sum(len(orjson.dumps(one.attributes)) for one in records))
        self.calls.append(("upsert", [one.lead_id for one in records]))
        return await super().upsert(records)

    async def retire(self, leads: Sequence[RetiredLead]) -> Sequence[SyncResult]:
        self.calls.append(("retire", [one.lead_id for one in leads]))
        return [Synced("new") for _ in leads]


def bounded(world: Any, crm: FakeCrm, max_bytes: int) -> LeasedWork[SyncRow]:
    table = world.table()
    pause = Pause("crm-fake", world.destination, Backoff(1, 5, lambda: 0.5), world.clock)
    reconciler = Reconciler(table, crm, pause, "crm-fake", max_bytes=max_bytes)
    work: LeasedWork[SyncRow] = world.sync(crm, handle=reconciler.handle)
    return work


async def test_large_leads_are_synced_in_calls_of_few_bytes(world: Any) -> None:
    leads = {await world.lead(title="x" * 100 * KB) for _ in range(12)}
    leads |= {await world.lead(title="small") for _ in range(12)}
    crm = Measured()
    work = bounded(world, crm, 250 * KB)
    for _ in range(12):
        await work.once()
    assert {lead_id for lead_id, _ in crm.sent} == leads
    assert len(crm.sent) == len(leads)
    assert max(crm.bytes) <= 350 * KB + 24 * 100
    assert len(crm.bytes) <= 6
    assert [o["what"] for o in world.outcomes] == ["synced"] * len(leads)


async def test_a_lead_that_is_larger_than_the_limit_is_synced_alone(world: Any) -> None:
    leads = {await world.lead(title="x" * 100 * KB) for _ in range(3)}
    crm = Measured()
    work = bounded(world, crm, 10 * KB)
    for _ in range(3):
        await work.once()
    assert {lead_id for lead_id, _ in crm.sent} == leads
    assert len(crm.bytes) == 3


async def test_a_merged_lead_is_retired_before_its_survivor_is_written_whatever_is_postponed(world: Any) -> None:
    for _ in range(3):
        await world.lead(title="x" * 100 * KB)
    world.clock.forward(1)
    survivor = await world.lead(title="x" * 100 * KB)
    world.clock.forward(1)
    loser = await world.lead(title="x" * 100 * KB)
    await world.merge(loser, survivor)
    await world.want(loser, 2)
    crm = Measured()
    work = bounded(world, crm, 10 * KB)
    for _ in range(6):
        await work.once()
    order = [(what, lead_id) for what, ids in crm.calls for lead_id in ids if lead_id in (survivor, loser)]
    assert order == [("retire", loser), ("upsert", survivor)]
