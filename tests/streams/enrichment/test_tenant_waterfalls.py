"""The providers of each tenant: whose account a lookup uses, and its budget."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from infra.outcomes import Reason
from infra.postgres.pool import connect
from infra.runtime import Stop
from infra.settings import Settings
from infra.tenants import Budget, Tenants
from schemas.lead import parse_lead
from streams.enrichment.budget import BudgetedProvider
from streams.enrichment.providers import Found, LookupFailed, LookupResult, NotFound
from streams.enrichment.providers.pdl import Config
from streams.enrichment.tenant_waterfalls import OpenedWaterfall, ProviderAccounts, TenantWaterfalls, problem
from streams.enrichment.waterfall import Enrichment, Waterfall
from tests.conftest import eventually
from tests.streams.enrichment.test_waterfall import Memory, Scripted

NOW = 1_770_000_000_000_000
LEAD = parse_lead(
    '{"lead_id": "0198c1f2-7b1e-7c9a-8d7e-5f1c2b3a4d5e", "email": "ada@example.com", "tenant": "acme", "version": 1}'
)
ACME = "enrichment: {providers: {pdl: {api_key: {setting: LEADSTREAM_SECRET_ACME}, min_likelihood: 9}}}"


class World:
    """Waterfalls whose providers answer with the account that was used."""

    def __init__(self, folder: Path, *fails: str) -> None:
        (folder / "default.yaml").touch()
        self.settings = Settings.load({"LEADSTREAM_SECRET_ACME": "acme-key", "LEADSTREAM_SECRET_OTHER": "other-key"})
        self.tenants = Tenants(folder, check=lambda tenant: problem(tenant, self.settings))
        self.results = Memory()
        self.opened: list[ProviderAccounts] = []
        self.closed: list[str] = []
        self.fails = fails
        shared = [("pdl", Config.model_validate({"api_key": "shared-key"}))]
        self.waterfalls = TenantWaterfalls(self.tenants, self.settings, shared, self.open, lambda: NOW)

    def open(self, accounts: ProviderAccounts) -> OpenedWaterfall:
        self.opened.append(accounts)
        providers: list[Any] = []
        for name, config in accounts.configs:
            key = config.api_key.get_secret_value()
            bad = LookupFailed(Reason.QUOTA)
            providers.append(Scripted(name, bad if key in self.fails else Found({"title": key}), rank=config.rank))

        async def close() -> None:
            self.closed.append(accounts.tenant)

        return OpenedWaterfall(accounts, Waterfall(providers, self.results, account=accounts.tenant), close)

    async def used(self, tenant: str) -> Any:
        """Return the key of the account, or the reason of the failure."""
        enrichment = await self.waterfalls.enrich(tenant, LEAD)
        assert isinstance(enrichment, Enrichment | None)
        result = enrichment.result if enrichment else None
        return result.fields["title"] if isinstance(result, Found) else getattr(result, "reason", None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "acme.yaml").write_text(ACME, "utf-8")
    return tmp_path


async def test_each_tenant_uses_its_own_account_and_no_cached_result_of_another(folder: Path) -> None:
    (folder / "globex.yaml").touch()
    world = World(folder)
    assert [await world.used(name) for name in ("initech", "acme", "globex", "hooli")] == [
        "shared-key",
        "acme-key",
        None,  # a file without providers
        "shared-key",
    ]
    assert len(world.results.cached) == 3, "the same person, once for each tenant"


async def test_a_broken_account_costs_only_its_tenant(folder: Path) -> None:
    world = World(folder, "acme-key")
    assert await world.used("acme") is Reason.QUOTA
    assert world.waterfalls.closed_after_s("acme") > 0
    assert world.waterfalls.closed_after_s("initech") == 0
    await asyncio.wait_for(world.waterfalls.ready(), 5)
    assert await world.used("initech") == "shared-key"


@pytest.mark.parametrize("text", ["nonsense", ACME.replace("ACME", "MISSING")])
async def test_a_tenant_whose_file_is_invalid_waits(folder: Path, text: str) -> None:
    (folder / "acme.yaml").write_text(text, "utf-8")
    world = World(folder)
    enrichment = await world.waterfalls.enrich("acme", LEAD)
    assert enrichment is not None
    assert isinstance(enrichment.result, LookupFailed)
    assert (enrichment.result.reason, enrichment.result.refused) == (Reason.TENANT_INVALID, False)
    assert enrichment.result.until > NOW
    assert not world.results.cached


async def test_an_unknown_tenant_is_refused(folder: Path) -> None:
    world = World(folder)
    world.tenants = Tenants(folder, closed=True)
    closed = TenantWaterfalls(world.tenants, world.settings, [], world.open, lambda: NOW)
    enrichment = await closed.enrich("initech", LEAD)
    assert enrichment is not None
    assert isinstance(enrichment.result, LookupFailed)
    assert (enrichment.result.reason, enrichment.result.refused) == (Reason.UNKNOWN_TENANT, True)


async def test_a_changed_file_takes_effect(folder: Path) -> None:
    world, stop = World(folder), Stop()
    assert await world.used("acme") == "acme-key"
    watching = asyncio.create_task(world.tenants.watch(stop, world.waterfalls.changed))
    (folder / "acme.yaml").write_text(ACME.replace("ACME", "OTHER"), "utf-8")
    world.results.cached.clear()

    async def changed() -> bool:
        world.results.cached.clear()
        return bool(await world.used("acme") == "other-key")

    await eventually(changed)
    stop.request()
    await watching
    await world.waterfalls.close()
    assert sorted(world.closed) == ["", "acme", "acme"]


async def test_the_budget_of_the_default_file_is_of_the_account_of_the_settings(folder: Path) -> None:
    (folder / "default.yaml").write_text("enrichment: {budget: {credits: 5}}", "utf-8")
    world = World(folder)
    assert await world.used("initech") == "shared-key"
    budgets = {each.tenant: each.budget for each in world.opened}
    assert budgets == {"": None, "acme": None, "default": Budget(credits=5)}


@pytest.mark.integration
@pytest.mark.parametrize("per", ["day", "month"])
async def test_a_budget_is_never_exceeded_by_many_calls_at_once(stack: Any, unique: str, per: str) -> None:
    budget = Budget.model_validate({"credits": 5, "per": per})
    async with await connect(stack.dsn, size=8, application="tests") as pool:

        def budgeted(*results: LookupResult, at: int = NOW, tenant: str = unique) -> BudgetedProvider:
            return BudgetedProvider(Scripted("pdl", *results), pool, tenant, budget, lambda: at)

        free = budgeted(NotFound(0), LookupFailed(Reason.UNAVAILABLE), Found({}, cost=0))
        for _ in range(8):
            result = await free.look_up({"email": "a"})
            assert not (isinstance(result, LookupFailed) and result.reason is Reason.QUOTA)
        workers = [budgeted(Found({}, cost=1)) for _ in range(4)]
        results = await asyncio.gather(*(worker.look_up({"email": "a"}) for worker in workers for _ in range(5)))
        assert sum(isinstance(result, Found) for result in results) == 5
        refused = [result for result in results if isinstance(result, LookupFailed)]
        assert {(result.reason, result.until) for result in refused} == {(Reason.QUOTA, 0)}
        assert isinstance(await budgeted(Found({}, cost=1), tenant=f"{unique}-other").look_up({"email": "a"}), Found)
        later = NOW + (86_400 if per == "day" else 31 * 86_400) * 1_000_000
        assert isinstance(await budgeted(Found({}, cost=1), at=later).look_up({"email": "a"}), Found)
