"""Which account a tenant's work uses, and what a change of the files does to the running accounts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from infra.runtime import Stop
from infra.settings import Settings, SettingsError
from sinks.account_work import AccountWork
from sinks.accounts import Account, Accounts
from sinks.crm import hubspot
from sinks.messages import email
from tests.conftest import eventually

ACME = "crm: {hubspot: {token: {setting: LEADSTREAM_SECRET_ACME}, base_url: https://acme.example}}"
DEFAULT = {"LEADSTREAM_CRM_HUBSPOT_TOKEN": "pat-all", "LEADSTREAM_CRM_HUBSPOT_BASE_URL": "https://all.example"}
SECRETS = {"LEADSTREAM_SECRET_ACME": "pat-acme"}


def accounts(folder: Path, module: Any = hubspot, kind: str = "crm", **environment: str) -> Accounts[Any]:
    settings = Settings.load({"LEADSTREAM_TENANTS_DIR": str(folder), **environment})
    return Accounts(settings, kind, module)


def tokens(found: Accounts[hubspot.Config]) -> dict[str, str]:
    return {scope: account.config.token.get_secret_value() for scope, account in found.current().items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "default.yaml").write_text("", "utf-8")
    (tmp_path / "acme.yaml").write_text(ACME, "utf-8")
    return tmp_path


def test_each_tenant_with_a_file_has_its_own_account(folder: Path) -> None:
    (folder / "globex.yaml").write_text("", "utf-8")  # a file without an account
    found = accounts(folder, **DEFAULT, **SECRETS)
    assert tokens(found) == {"hubspot": "pat-all", "hubspot:acme": "pat-acme"}
    assert found.current()["hubspot:acme"].config.base_url == "https://acme.example"
    scopes = {name: found.scope(name) for name in ("acme", "globex", "initech", "default")}
    assert scopes == {"acme": "hubspot:acme", "globex": "hubspot:globex", "initech": "hubspot", "default": "hubspot"}
    assert [found.has_account(name) for name in scopes] == [True, False, True, True]
    assert found.own_scopes() == ["hubspot:acme"]


@pytest.mark.parametrize(
    "wrong", ["crm: {hubspot: {token: secret}}", ACME.replace("ACME", "OTHER"), "phone_region: XX"]
)
def test_a_tenant_whose_file_is_wrong_at_the_start_has_no_account_and_its_work_waits(folder: Path, wrong: str) -> None:
    (folder / "acme.yaml").write_text(wrong, "utf-8")
    found = accounts(folder, **DEFAULT, **SECRETS)
    assert tokens(found) == {"hubspot": "pat-all"}
    assert found.scope("acme") == "hubspot:acme"
    assert found.has_account("acme"), "so its work is stored"
    assert found.own_scopes() == ["hubspot:acme"]


def test_a_wrong_default_file_stops_the_account_of_the_settings(folder: Path) -> None:
    (folder / "default.yaml").write_text("nonsense", "utf-8")
    found = accounts(folder, **DEFAULT, **SECRETS)
    assert tokens(found) == {"hubspot:acme": "pat-acme"}
    assert (found.scope("initech"), found.has_account("initech")) == ("hubspot", True)


def test_a_closed_installation_has_no_account_for_others(folder: Path) -> None:
    found = accounts(folder, **DEFAULT, **SECRETS, LEADSTREAM_TENANTS_CLOSED="true")
    assert tokens(found) == {"hubspot:acme": "pat-acme"}
    assert found.scope("initech") is None


def test_an_account_in_the_default_file_replaces_that_of_the_settings(folder: Path) -> None:
    (folder / "default.yaml").write_text("crm: {hubspot: {token: {setting: LEADSTREAM_SECRET_ALL}}}", "utf-8")
    found = accounts(folder, **DEFAULT, **SECRETS, LEADSTREAM_SECRET_ALL="pat-file")
    assert tokens(found) == {"hubspot": "pat-file", "hubspot:acme": "pat-acme"}
    assert found.current()["hubspot"].config.base_url == "https://api.hubapi.com", "nothing of the other account"


def test_the_settings_need_no_account_if_a_file_has_one(folder: Path) -> None:
    found = accounts(folder, LEADSTREAM_CRM_HUBSPOT_IN_FLIGHT="9", **SECRETS)
    assert tokens(found) == {"hubspot:acme": "pat-acme"}
    assert (found.process.in_flight, found.process.lease_s) == (9, 60)
    assert found.current()["hubspot:acme"].config.in_flight == 9
    assert not found.has_account("initech")


def test_without_any_account_the_missing_setting_is_named(folder: Path) -> None:
    (folder / "acme.yaml").unlink()
    with pytest.raises(SettingsError, match="LEADSTREAM_CRM_HUBSPOT_TOKEN"):
        accounts(folder)
    with pytest.raises(SettingsError, match="LEADSTREAM_CRM_HUBSPOT_BASE_URL"):
        accounts(folder, **DEFAULT | {"LEADSTREAM_CRM_HUBSPOT_BASE_URL": "ftp://x"})


def test_a_channel(folder: Path) -> None:
    text = "sender: {email: {url: smtp://acme.example, from_address: hello@acme.example}}"
    (folder / "acme.yaml").write_text(text, "utf-8")
    found = accounts(folder, email, "channel", LEADSTREAM_CHANNEL_EMAIL_URL="smtp://all.example")
    assert {scope: account.config.url for scope, account in found.current().items()} == {
        "email": "smtp://all.example",
        "email:acme": "smtp://acme.example",
    }
    assert found.current()["email:acme"].config.from_address == "hello@acme.example"


class Recorder:
    """The work of accounts: what runs now, and each start."""

    def __init__(self) -> None:
        self.running: dict[str, str] = {}
        self.starts: list[str] = []

    async def __call__(self, account: Account[Any], stop: Stop) -> None:
        assert account.scope not in self.running, "two engines of one account"
        self.running[account.scope] = account.config.token.get_secret_value()
        self.starts.append(account.scope)
        await stop.wait()
        await asyncio.sleep(0.05)  # finishes its work
        del self.running[account.scope]


async def test_a_change_starts_restarts_and_stops_only_the_accounts_that_it_is_about(
    folder: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "token"
    secret.write_text("pat-1", "utf-8")
    (folder / "acme.yaml").write_text(f"crm: {{hubspot: {{token: {{file: {secret}}}}}}}", "utf-8")
    found, recorder, stop = accounts(folder, **DEFAULT, **SECRETS), Recorder(), Stop()
    work = AccountWork("crm-hubspot", found.current, recorder)
    tasks = asyncio.gather(work.run(stop), found.tenants.watch(stop, work.apply))
    await eventually(lambda: recorder.running == {"hubspot": "pat-all", "hubspot:acme": "pat-1"})
    secret.write_text("pat-2", "utf-8")
    await eventually(lambda: recorder.running == {"hubspot": "pat-all", "hubspot:acme": "pat-2"})
    (folder / "acme.yaml").write_text("nonsense", "utf-8")
    (folder / "globex.yaml").write_text(ACME, "utf-8")
    await eventually(lambda: recorder.running.get("hubspot:globex") == "pat-acme")
    assert recorder.running["hubspot:acme"] == "pat-2", "the last good one"
    (folder / "globex.yaml").write_text("", "utf-8")
    await eventually(lambda: "hubspot:globex" not in recorder.running)
    assert recorder.starts.count("hubspot") == 1
    stop.request()
    await asyncio.wait_for(tasks, 10)
    assert recorder.running == {}


async def test_a_defect_of_one_account_ends_the_work(folder: Path) -> None:
    found = accounts(folder, **DEFAULT, **SECRETS)

    async def fail(account: Account[Any], stop: Stop) -> None:
        if account.tenant:
            raise RuntimeError("a defect")
        await stop.wait()

    with pytest.raises(RuntimeError, match="a defect"):
        await asyncio.wait_for(AccountWork("crm-hubspot", found.current, fail).run(Stop()), 10)
