"""Which tenant a name stands for, and what a change of the files does at run time."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from infra.runtime import Stop
from infra.settings import Settings, SettingsError
from infra.tenants import State, Tenants
from tests.conftest import eventually


def region(tenants: Tenants, name: str = "acme") -> str | None:
    tenant = tenants.get(name)
    return tenant.phone_region if tenant else "none"


def alarm(name: str) -> float:
    return REGISTRY.get_sample_value("leadstream_tenant_file_invalid", {"tenant": name}) or 0


@asynccontextmanager
async def watched(tenants: Tenants) -> AsyncIterator[list[int]]:
    stop, changes = Stop(), list[int]()

    async def changed() -> None:
        changes.append(1)

    task = asyncio.create_task(tenants.watch(stop, changed))
    try:
        yield changes
    finally:
        stop.request()
        await task


def test_default_serves_tenants_without_a_file(folder: Path) -> None:
    tenants = Tenants(folder)
    other = tenants.get("globex")
    assert other is not None
    assert (other.name, other.file, other.crm) == ("globex", "default", {})
    assert [tenants.state(name) for name in ("acme", "globex", "Not a tenant")] == [
        State.OWN,
        State.DEFAULT,
        State.UNKNOWN,
    ]
    assert tenants.get("../acme") is None
    assert tenants.open


@pytest.mark.parametrize("setting", [True, False])
def test_a_closed_installation_knows_only_tenants_with_a_file(folder: Path, setting: bool) -> None:
    if not setting:
        (folder / "default.yaml").unlink()
    tenants = Tenants(folder, closed=setting)
    assert tenants.get("acme") is not None
    for name in ("globex", "default"):
        assert tenants.get(name) is None
        assert tenants.state(name) is State.UNKNOWN
    assert not tenants.open
    assert [tenant.name for tenant in tenants.own] == ["acme"]


def test_a_folder_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="LEADSTREAM_TENANTS_DIR"):
        Tenants(tmp_path / "none")


def test_the_shipped_file_serves_every_tenant() -> None:
    assert Tenants.load(Settings.load({})).state("acme") is State.DEFAULT


@pytest.mark.parametrize("name", ["acme.yaml", "acme.yml", "Acme.yaml"])
def test_a_file_that_is_wrong_from_the_start_never_means_default(folder: Path, name: str) -> None:
    (folder / "acme.yaml").unlink()
    (folder / name).write_text("phone_region: XX" if name == "acme.yaml" else "", "utf-8")
    tenants = Tenants(folder)
    assert tenants.state("acme") is State.INVALID
    assert tenants.get("acme") is None
    assert tenants.get("globex") is not None
    assert alarm("acme") == 1


def test_a_wrong_default_serves_nobody(folder: Path) -> None:
    (folder / "default.yaml").write_text("nonsense", "utf-8")
    tenants = Tenants(folder)
    assert tenants.state("globex") is State.INVALID
    assert tenants.get("globex") is None
    assert tenants.get("acme") is not None


def test_what_a_process_cannot_use_is_a_problem_of_the_file(folder: Path) -> None:
    tenants = Tenants(folder, check=lambda tenant: "a secret is missing" if tenant.crm else "")
    assert tenants.state("acme") is State.INVALID
    assert "a secret is missing" in tenants.problems["acme"][0].message


async def test_a_change_takes_effect_and_a_wrong_one_keeps_the_last_good_one(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tenants = Tenants(folder)
    async with watched(tenants) as changes:
        (folder / "acme.yaml").write_text("phone_region: DE", "utf-8")
        await eventually(lambda: region(tenants) == "DE")
        assert changes
        (folder / "acme.yaml").write_text("phone_region: XX", "utf-8")
        await eventually(lambda: alarm("acme") == 1)
        assert region(tenants) == "DE"
        (folder / "globex.yaml").write_text(
            "phone_region: FR", "utf-8"
        )  # the wrong one is read again, not logged again
        await eventually(lambda: region(tenants, "globex") == "FR")
        assert [r.getMessage() for r in caplog.records if r.levelname == "ERROR"] == [
            "the tenant file is invalid; its last valid content stays in use"
        ]
        (folder / "acme.yaml").write_text("phone_region: GB", "utf-8")
        await eventually(lambda: region(tenants) == "GB")
        assert alarm("acme") == 0


def _replace(file: Path) -> None:
    new = file.with_suffix(".new")
    new.write_text("phone_region: DE", "utf-8")
    os.utime(new, ns=(file.stat().st_mtime_ns,) * 2)  # the same time of change
    new.replace(file)


def _config_map(file: Path) -> None:
    """Replace the content as Kubernetes does: a link to a folder is swapped."""
    (file.parent / "..2").mkdir()
    (file.parent / "..2" / "acme.yaml").write_text("phone_region: DE", "utf-8")
    (file.parent / "..tmp").symlink_to("..2")
    (file.parent / "..tmp").replace(file.parent / "..data")


@pytest.mark.parametrize("change", [_replace, _config_map])
async def test_files_replaced_atomically_or_by_a_link(folder: Path, change: Callable[[Path], None]) -> None:
    (folder / "..1").mkdir()
    (folder / "acme.yaml").replace(folder / "..1" / "acme.yaml")
    (folder / "..data").symlink_to("..1")
    (folder / "acme.yaml").symlink_to("..data/acme.yaml")
    tenants = Tenants(folder)
    assert region(tenants) == "NO"
    async with watched(tenants):
        change(folder / "acme.yaml")
        await eventually(lambda: region(tenants) == "DE")


@pytest.mark.parametrize("closed", [True, False])
async def test_a_file_that_disappears(folder: Path, closed: bool) -> None:
    tenants = Tenants(folder, closed=closed)
    async with watched(tenants):
        (folder / "acme.yaml").unlink()
        if closed:
            await eventually(lambda: tenants.state("acme") is State.UNKNOWN)
        else:  # it must not become a tenant of default.yaml
            await eventually(lambda: alarm("acme") == 1)
            assert region(tenants) == "NO"


def remove(folder: Path) -> None:
    folder.rename(folder.with_name("gone"))


async def test_a_folder_that_disappears_changes_nothing_in_an_open_installation(folder: Path) -> None:
    tenants = Tenants(folder)
    async with watched(tenants):
        remove(folder)
        await eventually(lambda: alarm("default") == 1)
        assert region(tenants) == "NO"
        assert tenants.get("globex") is not None


async def test_a_secret_file_that_changes_is_a_change(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("one", "utf-8")
    (folder / "acme.yaml").write_text(json.dumps({"crm": {"hubspot": {"token": {"file": str(secret)}}}}), "utf-8")
    tenants = Tenants(folder)
    async with watched(tenants) as changes:
        secret.write_text("two", "utf-8")
        await eventually(lambda: bool(changes))


@pytest.mark.parametrize("name", ["acme.YAML", "acme.Yml", "acme.yml"])
def test_a_file_with_another_ending_is_never_served_by_default(tmp_path: Path, name: str) -> None:
    (tmp_path / "default.yaml").touch()
    (tmp_path / name).touch()
    assert Tenants(tmp_path).state("acme") is State.INVALID


async def test_a_folder_that_cannot_be_read_removes_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "tenants"
    folder.mkdir()
    (folder / "acme.yaml").touch()
    tenants, stop = Tenants(folder, closed=True), Stop()
    watching = asyncio.create_task(tenants.watch(stop))
    folder.rename(tmp_path / "lost")
    await eventually(lambda: "cannot be read" in caplog.text)
    assert tenants.state("acme") is State.OWN
    stop.request()
    await watching


async def test_without_a_default_file_a_tenant_whose_file_disappears_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "acme.yaml").touch()
    (tmp_path / "other.yaml").touch()
    tenants, stop = Tenants(tmp_path), Stop()
    watching = asyncio.create_task(tenants.watch(stop))
    (tmp_path / "acme.yaml").unlink()
    await eventually(lambda: tenants.state("acme") is State.UNKNOWN)
    assert tenants.state("other") is State.OWN
    stop.request()
    await watching
