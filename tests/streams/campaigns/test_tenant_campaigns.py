"""Campaigns of one tenant run only for its leads."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from infra.outcomes import Dead, Reason
from infra.postgres.pool import connect
from infra.runtime import Stop
from infra.tenants import Tenants
from streams.campaigns.catalog import Catalog
from tests.conftest import eventually

CAMPAIGN = """
name: {name}
trigger: {{event: {event}}}
step: {{subject: Welcome, template: welcome.html.j2}}
"""


def campaigns(folder: Path, name: str, event: str = "lead_created") -> Path:
    (folder / "templates").mkdir(parents=True, exist_ok=True)
    (folder / "templates" / "welcome.html.j2").write_text("<p>Welcome</p>", "utf-8")
    (folder / f"{name}.yaml").write_text(CAMPAIGN.format(name=name, event=event), "utf-8")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tenants"
    campaigns(folder / "acme-campaigns", "acme_welcome")
    (folder / "default.yaml").touch()
    (folder / "acme.yaml").write_text("campaigns: acme-campaigns", "utf-8")
    (folder / "globex.yaml").touch()
    return folder


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    return campaigns(tmp_path / "campaigns", "welcome")


def names(catalog: Catalog, tenant: str) -> Any:
    found = catalog.of(tenant)
    return found.reason if isinstance(found, Dead) else [campaign.name for campaign in found.campaigns]


def test_each_tenant_has_its_campaigns_and_no_others(folder: Path, shared: Path) -> None:
    catalog = Catalog(shared, Tenants(folder))
    found = {tenant: names(catalog, tenant) for tenant in ("acme", "globex", "initech", "default")}
    assert found == {"acme": ["acme_welcome"], "globex": [], "initech": ["welcome"], "default": ["welcome"]}


def test_an_invalid_campaign_of_one_tenant_costs_only_that_tenant(folder: Path, shared: Path) -> None:
    campaigns(folder / "acme-campaigns", "broken", "no_such_event")
    catalog = Catalog(shared, Tenants(folder))
    assert names(catalog, "acme") is Reason.TENANT_INVALID
    assert names(catalog, "initech") == ["welcome"]


def test_an_invalid_tenant_and_an_unknown_one(folder: Path, shared: Path) -> None:
    (folder / "acme.yaml").write_text("campaigns: nowhere", "utf-8")
    (folder / "default.yaml").unlink()
    catalog = Catalog(shared, Tenants(folder))
    assert names(catalog, "acme") is Reason.TENANT_INVALID
    assert names(catalog, "initech") is Reason.UNKNOWN_TENANT


@pytest.mark.integration
async def test_a_tenant_that_is_added_at_run_time_gets_its_campaigns(folder: Path, shared: Path, stack: Any) -> None:
    stop, tenants = Stop(), Tenants(folder)
    catalog = Catalog(shared, tenants)
    async with await connect(stack.dsn, size=2, application="test") as pool:

        async def types() -> set[str]:
            rows = await pool.fetch("SELECT event_type FROM signal_types WHERE consumer = 'campaigns'")
            return {row[0] for row in rows}

        async def registered(*expected: str) -> bool:
            return await types() == set(expected)

        following = asyncio.gather(tenants.watch(stop), catalog.follow_changes(pool, stop))
        campaigns(folder / "hooli-campaigns", "hooli", "meeting_booked")
        (folder / "hooli.yaml").write_text("campaigns: hooli-campaigns", "utf-8")
        await eventually(lambda: names(catalog, "hooli") == ["hooli"])
        assert await types() == {"lead_created", "meeting_booked"}
        campaigns(folder / "hooli-campaigns", "hooli", "page_viewed")
        await eventually(lambda: registered("lead_created", "page_viewed"))
        (folder / "hooli.yaml").write_text("", "utf-8")
        await eventually(lambda: registered("lead_created"))
        assert names(catalog, "hooli") == []
        assert names(catalog, "acme") == ["acme_welcome"]
        stop.request()
        await following
