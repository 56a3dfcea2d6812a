"""The rows of crm_sync by account: no other account syncs them, and they move when a tenant gets its own."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from infra.errors import Verdict
from infra.kafka.outcome_records import OutcomeRecords
from infra.outcomes import Reason
from infra.postgres.leased import LeasedWork, WorkLimits
from infra.postgres.leased_outcomes import OutcomeQueue
from infra.postgres.leased_pause import Pause
from infra.retry import Backoff
from sinks.accounts import Wakes
from sinks.crm import SyncFailed
from sinks.crm.account_rows import AccountRows, close_accounts
from sinks.crm.reconciler import Reconciler
from sinks.crm.sync_requests import SyncRequests
from sinks.crm.sync_table import CrmSyncTable, SyncRow
from tests.conftest import outputs_of
from tests.events import message
from tests.sinks.crm.conftest import CODEC, STAGE, World
from tests.sinks.crm.fake import FakeCrm

pytestmark = pytest.mark.integration


class Scopes:
    """The accounts of a test: the scope of each tenant; None: unknown."""

    def __init__(self, **scopes: str | None) -> None:
        self.scopes = scopes

    def scope(self, tenant: str) -> str | None:
        return self.scopes[tenant]

    def has_account(self, tenant: str) -> bool:
        return bool(self.scopes[tenant])


def engine(world: World, scope: str, crm: FakeCrm, accounts: Any) -> LeasedWork[SyncRow]:
    table = CrmSyncTable(world.pool, scope, lease_s=60, clock=world.clock)
    pause = Pause(STAGE, scope, Backoff(0.5, 5, lambda: 0.5), world.clock)
    rows = AccountRows(world.pool, accounts, scope, Reconciler(table, crm, pause, STAGE).handle, Wakes(), world.clock)
    return LeasedWork(
        STAGE,
        table,
        rows.handle,
        limits=WorkLimits(in_flight=2, batch_max=crm.batch_max),
        backoff=Backoff(0.5, 5, lambda: 0.5),
        pause=pause,
        outcomes=OutcomeQueue(world.emit),
        records=OutcomeRecords(STAGE, CODEC.encoder("outcome"), world.clock),
        wake=world.wake,
        clock=world.clock,
    )


async def destinations(world: World, lead_id: str) -> dict[str, tuple[int, int]]:
    rows = await world.pool.fetch("SELECT * FROM crm_sync WHERE lead_id = $1", lead_id)
    return {row["destination"]: (row["wanted_version"], row["synced_version"]) for row in rows}


async def test_a_row_of_a_tenant_with_its_own_account_is_moved_and_not_synced_with_another(world: World) -> None:
    shared, own = world.destination, f"{world.destination}:acme"
    lead_id = await world.lead(email="ada@example.com")  # stored before acme had an account
    wrong, right = FakeCrm(), FakeCrm()
    accounts = Scopes(acme=own)
    await engine(world, shared, wrong, accounts).once()
    assert wrong.sent == []
    assert await destinations(world, lead_id) == {own: (1, 0)}
    await engine(world, own, right, accounts).once()
    assert right.sent == [(lead_id, 1)]
    assert await destinations(world, lead_id) == {own: (1, 1)}
    assert [(outcome["what"], outcome["version"]) for outcome in world.outcomes] == [("synced", 1)]


async def test_a_row_of_an_unknown_tenant_is_parked(world: World) -> None:
    lead_id, crm = await world.lead(), FakeCrm()
    await engine(world, world.destination, crm, Scopes(acme=None)).once()
    assert crm.sent == []
    assert (await world.row(lead_id))["last_error"] == Reason.UNKNOWN_TENANT.value


async def test_a_request_for_a_lead_of_another_tenant_sends_nothing(world: World) -> None:
    """Such as a forged record: the account of the tenant that it claims must not get the lead."""
    lead_id, crm = await world.lead(email="ada@example.com"), FakeCrm()
    await world.pool.execute("UPDATE leads SET tenant = 'globex' WHERE lead_id = $1", lead_id)
    await engine(world, world.destination, crm, Scopes(acme=world.destination)).once()
    assert crm.sent == []
    assert (await world.row(lead_id))["last_error"] == Reason.REJECTED.value


async def test_a_new_account_gets_all_leads_of_its_tenant_once(world: World) -> None:
    tenant, own = f"t-{uuid.uuid4().hex[:8]}", f"{world.destination}:t"
    leads = [await world.lead(version=number + 1) for number in range(3)]
    merged = await world.lead()
    await world.merge(merged, leads[0])
    await world.pool.execute("UPDATE leads SET tenant = $1 WHERE lead_id = ANY($2)", tenant, [*leads, merged])
    await world.pool.execute(
        "UPDATE crm_sync SET tenant = $1 WHERE destination = $2 AND lead_id = ANY($3)", tenant, world.destination, leads
    )
    crm, accounts = FakeCrm(), Scopes(**{tenant: own})
    table = CrmSyncTable(world.pool, own, lease_s=60, clock=world.clock)
    reconciler = Reconciler(table, crm, Pause(STAGE, own, Backoff(1, 1), world.clock), STAGE)
    rows = AccountRows(world.pool, accounts, own, reconciler.handle, Wakes(), world.clock)  # type: ignore[arg-type]
    for _ in range(2):
        await rows.open(tenant, world.destination)
    for number, lead_id in enumerate(leads):
        assert await destinations(world, lead_id) == {own: (number + 1, 0)}
    assert own not in await destinations(world, merged)
    await engine(world, own, crm, accounts).once()
    assert sorted(version for _, version in crm.sent) == [1, 2, 3]
    await close_accounts(world.pool, world.destination, [])  # the account is removed from the file, then added again
    late = await world.write()
    await world.pool.execute("UPDATE leads SET tenant = $1 WHERE lead_id = $2", tenant, late)
    await rows.open(tenant, world.destination)
    assert await destinations(world, late) == {own: (1, 0)}


async def test_a_broken_account_pauses_only_its_tenant(world: World) -> None:

    own, broken = f"{world.destination}:acme", FakeCrm(lambda _: SyncFailed(Verdict.PAUSE, Reason.UNAUTHORIZED, 60))
    good, accounts = FakeCrm(), Scopes(acme=own, globex=world.destination)
    mine = await world.lead()
    other = await world.lead()
    await world.pool.execute("UPDATE leads SET tenant = 'globex' WHERE lead_id = $1", other)
    await world.pool.execute("UPDATE crm_sync SET tenant = 'globex' WHERE lead_id = $1", other)
    shared = engine(world, world.destination, good, accounts)
    await shared.once()  # moves the lead of acme
    paused = engine(world, own, broken, accounts)
    await paused.once()
    assert await paused.once() == 0, "paused"
    await world.want(other, 2)
    await world.pool.execute("UPDATE leads SET version = 2 WHERE lead_id = $1", other)
    await world.pool.execute("UPDATE crm_sync SET wanted_version = 2 WHERE lead_id = $1", other)
    assert await shared.once() == 1
    assert good.sent == [(other, 1), (other, 2)]
    assert (await destinations(world, mine))[own] == (1, 0)


async def test_requests_are_stored_by_account_and_those_of_unknown_tenants_are_dead(world: World) -> None:
    own = f"{world.destination}:acme"
    accounts: Any = Scopes(acme=own, globex=world.destination, initech="", hooli=None)
    wakes = Wakes()
    processor = SyncRequests(world.table(), CODEC, STAGE, wakes, accounts)
    encode, leads = CODEC.encoder("crm_wanted"), {tenant: str(uuid.uuid4()) for tenant in accounts.scopes}
    records = [
        message(encode({"tenant": tenant, "lead_id": lead_id, "version": 1, "decided_at": 1}))
        for tenant, lead_id in leads.items()
    ]
    (dead,) = await outputs_of(processor.apply(processor.prepare(records)))
    assert dict(dead.headers or ())["leadstream.reason"] == b"unknown_tenant"
    assert [list(await destinations(world, lead_id)) for lead_id in leads.values()] == [
        [own],
        [world.destination],
        [],
        [],
    ]
    assert wakes(own).is_set()
    assert not wakes(f"{own}-other").is_set()
