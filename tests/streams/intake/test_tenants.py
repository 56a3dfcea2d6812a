"""Events of tenants that are not served are dead letters; those of other tenants go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infra.tenants import Tenants
from tests.events import message, payload
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
    for output in batch.dead:
        headers = dict(output.headers or ())
        found[names[int(headers["leadstream.offset"])]] = headers["leadstream.reason"].decode()
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
