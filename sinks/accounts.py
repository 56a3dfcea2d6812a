"""The accounts of one connector: that of the settings, and those of the tenant files.

Each account has a scope, which is stored with its work: ``hubspot`` for the tenants of ``default.yaml``, and
``hubspot:acme`` for the tenant acme, which has a file of its own. Each scope has its own engine, client, rate limit and
pause, so a broken account costs only its tenants.

Guarantees: a tenant with a file never uses the account of the settings or of another tenant. If its file is invalid and
was not valid before, its work is stored in its scope and waits. Without an account in its valid file it has no work.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, create_model

from infra.outcomes import Dead, Problem, Reason
from infra.settings import PREFIX, Settings, SettingsError
from infra.tenant_files.sections import process_fields
from infra.tenants import DEFAULT, AccountError, State, Tenant, Tenants

Config = TypeVar("Config", bound=BaseModel)


UNKNOWN_TENANT = Dead(
    Reason.UNKNOWN_TENANT, (Problem("/tenant", "no such tenant: add its file <tenant>.yaml, or a file default.yaml"),)
)


class Wakes:
    """The events that wake the engines, by scope. ``only``: one for all scopes."""

    def __init__(self, only: asyncio.Event | None = None) -> None:
        self._only = only
        self._events: dict[str, asyncio.Event] = {}

    def __call__(self, scope: str) -> asyncio.Event:
        """Return the event of ``scope``."""
        return self._only or self._events.setdefault(scope, asyncio.Event())


@dataclass(frozen=True, slots=True)
class Account(Generic[Config]):
    """An account that can be used now. ``tenant``: whose it is; "" for the tenants of ``default.yaml``."""

    scope: str
    tenant: str
    config: Config


class Accounts(Generic[Config]):
    """The accounts of the connector ``module``. ``kind``: crm or channel, as in :mod:`infra.tenant_files.sections`.

    Raises:
        SettingsError: the settings of the connector are invalid, or neither they nor any tenant file has an account.

    """

    def __init__(self, settings: Settings, kind: str, module: ModuleType) -> None:
        self._settings = settings
        self._kind = kind
        self._name: str = module.NAME
        self._model: type[Config] = module.Config
        self._process: dict[str, Any] = {}
        self._default: Config | None = None
        missing = self._read_settings()
        self.tenants = Tenants.load(settings, self._problem)
        if missing is not None and not self._in_files():
            raise missing

    @property
    def process(self) -> Any:
        """The settings of the process: the connector's ``process_fields`` as attributes."""
        return SimpleNamespace(**self._process)

    def current(self) -> dict[str, Account[Config]]:
        """Return the accounts that can be used now, by scope."""
        found: dict[str, Account[Config]] = {}
        for tenant in self.tenants.own:
            scope, name = self._scope(tenant.name), "" if tenant.name == DEFAULT else tenant.name
            config = self._config(tenant)
            if config is not None:
                found[scope] = Account(scope, name, config)
        return found

    def scope(self, tenant: str) -> str | None:
        """Return the scope of the tenant's work, or None if the tenant is unknown."""
        return None if self.tenants.state(tenant) is State.UNKNOWN else self._scope(tenant)

    def own_scopes(self) -> list[str]:
        """Return the scopes of the tenants that have a file with an account, or an invalid file."""
        names = {tenant.name for tenant in self.tenants.own} | self.tenants.problems.keys()
        return [self._scope(name) for name in names if name != DEFAULT and self.has_account(name)]

    def has_account(self, tenant: str) -> bool:
        """Return whether the tenant has an account, or may have one when its file is corrected."""
        known = self.tenants.get(tenant)
        if known is None:
            return self.tenants.state(tenant) is State.INVALID
        return known.section(self._kind, self._name) is not None or (not known.own_file and self._default is not None)

    def _scope(self, tenant: str) -> str:
        known = self.tenants.get(tenant)
        own = known.own_file if known else tenant in self.tenants.problems and tenant != DEFAULT
        return f"{self._name}:{tenant}" if own else self._name

    def _config(self, tenant: Tenant) -> Config | None:
        section = tenant.section(self._kind, self._name)
        if section is None:
            return None if tenant.own_file else self._default
        try:
            return section.config(self._model, self._process, self._settings)
        except AccountError:  # a secret has disappeared since the file was read
            return None

    def _problem(self, tenant: Tenant) -> str:
        section = tenant.section(self._kind, self._name)
        if section is not None:
            try:
                section.config(self._model, self._process, self._settings)
            except AccountError as error:
                return f"{self._kind} {self._name}: {error}"
        return ""

    def _in_files(self) -> bool:
        return bool(self.tenants.problems) or any(t.section(self._kind, self._name) for t in self.tenants.own)

    def _read_settings(self) -> SettingsError | None:
        """Read the account of the settings; return what is missing if they have no account.

        Raises:
            SettingsError: a setting is invalid.

        """
        section = f"{self._kind}_{self._name}"
        fields = process_fields(self._model)
        try:
            self._default = self._settings.section(section, self._model)
        except SettingsError as error:
            names = self._model.model_fields.keys() - fields
            if any(self._settings.secret(f"{PREFIX}{section}_{name}".upper()) for name in names):
                raise
            own: Any = {name: (each.annotation, each) for name in fields if (each := self._model.model_fields[name])}
            self._process = self._settings.section(section, create_model("Process", **own)).model_dump()
            return error
        self._process = {name: getattr(self._default, name) for name in fields}
        return None
