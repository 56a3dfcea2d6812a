"""Events of tenants that are not served are dead letters; those of other tenants go on."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from infra.tenants import Tenants
from streams.intake.event import Event
from streams.intake.identity_policy import TenantPolicies
from streams.intake.merge import Lead, merge
from streams.intake.validate import of_tenant
from tests.events import HOUR, NOW, event, message, payload
from tests.streams.intake.conftest import intake


def prepared(tenants: Tenants | None) -> dict[str, str]:
    """Return what becomes of an event of each tenant: "" if it is accepted, else the reason."""
    stage = intake(None, tenants=tenants)  # needs no Postgres to prepare
    names = ("acme", "globex", "initech")
    batch = stage.prepare(
        [
            message(payload("lead_updated", f"e-{n}", tenant=n, email="a@example.com"), offset=i)
            for i, n in enumerate(names)
        ]
    )
    found: dict[str, Any] = {event.tenant: "" for event in batch.events}
    for letter in batch.dead:
        found[names[letter.message.offset() or 0]] = letter.dead.reason.value
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "acme.yaml").touch()
    (tmp_path / "globex.yaml").write_text("nonsense", "utf-8")
    return tmp_path


def test_without_a_default_file_a_tenant_needs_a_file(folder: Path) -> None:
    assert prepared(Tenants(folder)) == {"acme": "", "globex": "tenant_invalid", "initech": "unknown_tenant"}


def test_an_open_installation_accepts_every_tenant_but_one_whose_file_is_wrong(folder: Path) -> None:
    (folder / "default.yaml").touch()
    assert prepared(Tenants(folder)) == {"acme": "", "globex": "tenant_invalid", "initech": ""}
    assert prepared(None) == {"acme": "", "globex": "", "initech": ""}


def test_the_order_of_sources_in_the_file_outranks_the_authority(folder: Path) -> None:
    (folder / "acme.yaml").write_text("precedence: {title: [crm, import], custom: [import]}", "utf-8")
    tenants = Tenants(folder)

    def merged(*made: Event) -> Lead:
        lead = Lead("lead", "acme")
        for each in made:
            found = of_tenant(each, tenants)
            assert isinstance(found, Event)
            merge(lead, found)
        return lead

    person: dict[str, Any] = {"title": "CEO", "first_name": "Ada", "email": "ada@example.com"}
    made = [
        event("form_submitted", "e-1", source="web", at=NOW, **person),
        event(
            "lead_updated",
            "e-2",
            source="import",
            at=NOW - HOUR,
            title="CTO",
            first_name="A",
            custom={"plan": "pro"},
            email="ada@example.com",
        ),
        event("lead_updated", "e-3", source="crm", at=NOW - 2 * HOUR, title="CFO", email="ada@example.com"),
        event("lead_updated", "e-4", source="web", at=NOW + HOUR, custom={"plan": "free"}, email="ada@example.com"),
    ]
    leads = [merged(*order) for order in permutations(made)]
    assert all((lead.attributes, lead.provenance) == (leads[0].attributes, leads[0].provenance) for lead in leads)
    assert leads[0].attributes["title"] == "CFO", "the first source of the order, though the oldest"
    assert leads[0].attributes["first_name"] == "Ada", "no order for this field: the person"
    assert leads[0].attributes["custom"] == {"plan": "pro"}


def test_the_identity_policy_of_the_file_takes_effect_when_it_changes(folder: Path) -> None:
    (folder / "default.yaml").touch()
    tenants = Tenants(folder)
    policies = TenantPolicies(tenants)
    assert policies("acme").region == policies("other").region == policies("globex").region == ""
    assert policies("acme") is policies("acme")

    text = "{phone_region: GB, identity: {placeholders: [Walk-In], role_addresses: [empfang], caps: {phone: 3}}}"
    (folder / "acme.yaml").write_text(text, "utf-8")
    policy = TenantPolicies(Tenants(folder))("acme")

    assert (policy.region, policy.placeholders, policy.cap("phone")) == ("GB", frozenset({"walk-in"}), 3)
    assert not policy.is_strong("email", "empfang@example.com")
    assert policies("other").is_strong("email", "empfang@example.com")
