"""The API accepts events of the tenants that are served, with the region of their phone numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from api.ingest.accept import Checker, InvalidEvent, ValidEvent
from infra.tenants import Tenants
from schemas.senders import Sender


def checked(folder: Path, tenant: str, **identifiers: Any) -> ValidEvent | InvalidEvent:
    checker = Checker(max_event_bytes=65_536, max_ahead_us=0, tenants=Tenants(folder))
    document = {"type": "page_viewed", "envelope": {"tenant": tenant}, "identifiers": identifiers}
    return checker.json(document, Sender("", frozenset(), "the key of a test"))


@pytest.mark.parametrize(("tenant", "reason"), [("other", "unknown_tenant"), ("wrong", "tenant_invalid")])
def test_an_event_of_a_tenant_that_is_not_served_is_refused(tmp_path: Path, tenant: str, reason: str) -> None:
    (tmp_path / "acme.yaml").touch()
    (tmp_path / "wrong.yaml").write_text("nonsense", "utf-8")

    assert isinstance(checked(tmp_path, "acme", email="a@example.com"), ValidEvent)
    refused = checked(tmp_path, tenant, email="a@example.com")

    assert isinstance(refused, InvalidEvent)
    assert (refused.dead.reason, refused.dead.problems[0].path) == (reason, "/envelope/tenant")


def test_a_national_number_identifies_somebody_if_the_tenant_has_a_region(tmp_path: Path) -> None:
    (tmp_path / "acme.yaml").write_text("phone_region: GB", "utf-8")
    (tmp_path / "default.yaml").touch()

    assert isinstance(checked(tmp_path, "acme", phone="020 7183 8750"), ValidEvent)
    assert isinstance(checked(tmp_path, "other", phone="020 7183 8750"), InvalidEvent)
