"""The providers of each tenant: those of the settings for the tenants of ``default.yaml``, else those of its own file.

Guarantees: accounts, order, budget, rate limits and circuit breakers of one tenant do not affect another. The leads of
a tenant whose file is invalid are not looked up with other accounts: its requests stay open until it is corrected.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from infra.clock import Clock, now_us, seconds_us
from infra.outcomes import Reason
from infra.settings import Settings
from infra.tenant_files.sections import connectors
from infra.tenants import AccountError, Budget, State, Tenant, Tenants
from streams.enrichment.providers import LookupFailed, ProviderConfig
from streams.enrichment.waterfall import Enrichment, Waterfall

_READY_S = 0.2  # interval of looking whether a breaker admits a call
_INVALID_S = 60.0  # until a request of a tenant whose file is invalid is tried again
_CLOSE_S = 60.0  # until replaced clients are closed; longer than the lookups of one lead


@dataclass(frozen=True, slots=True)
class ProviderAccounts:
    """The providers of one tenant, in the order of the calls.

    ``tenant``: the name of its file; "" for those of the settings. ``budget``: that of ``default.yaml`` is of all of
    its tenants together.
    """

    tenant: str
    configs: tuple[tuple[str, ProviderConfig], ...]
    budget: Budget | None = None


@dataclass(frozen=True, slots=True)
class OpenedWaterfall:
    """The waterfall of ``accounts``; ``close`` closes its clients."""

    accounts: ProviderAccounts
    waterfall: Waterfall
    close: Callable[[], Awaitable[None]]


Open = Callable[[ProviderAccounts], OpenedWaterfall]


class TenantWaterfalls:
    """The waterfalls of all tenants: each is opened when it is needed first, and again when its accounts change."""

    def __init__(
        self,
        tenants: Tenants,
        settings: Settings,
        shared: Sequence[tuple[str, ProviderConfig]],
        open_: Open,
        clock: Clock = now_us,
    ) -> None:
        self._tenants = tenants
        self._settings = settings
        self._shared = ProviderAccounts("", tuple(shared))
        self._open = open_
        self._clock = clock
        self._opened: dict[str, OpenedWaterfall] = {"": open_(self._shared)}
        self._closing: set[asyncio.Task[None]] = set()
        self._open_all()

    async def enrich(self, tenant: str, lead: Mapping[str, Any]) -> Enrichment | None:
        """Look ``lead`` up at the providers of ``tenant``; see :meth:`Waterfall.enrich`."""
        waterfall = self._of(tenant)
        if waterfall is not None:
            return await waterfall.enrich(tenant, lead)
        if self._tenants.state(tenant) is State.UNKNOWN:
            return Enrichment(LookupFailed(Reason.UNKNOWN_TENANT), "tenant")
        until = self._clock() + seconds_us(_INVALID_S)
        failed = LookupFailed(Reason.TENANT_INVALID, detail="the tenant's file is invalid", until=until)
        return Enrichment(failed, "tenant")

    def closed_after_s(self, tenant: str) -> float:
        """Return the seconds until every breaker of the tenant admits a call, as far as is known."""
        waterfall = self._of(tenant)
        return waterfall.closed_after_s(tenant) if waterfall else 0.0

    async def ready(self) -> None:
        """Wait until some tenant's provider admits a call; return at once if a tenant has no providers."""
        while not any(each.waterfall.admits for each in self._opened.values()):  # noqa: ASYNC110
            await asyncio.sleep(_READY_S)  # the end of a breaker's time is no event

    async def changed(self) -> None:
        """Open the waterfalls whose accounts have changed again; close the old clients when they are not used."""
        for name, opened in list(self._opened.items()):
            tenant = self._tenants.get(name) if name else None
            if name and (tenant is None or self._accounts(tenant) != opened.accounts):
                del self._opened[name]
                task = asyncio.create_task(_close_later(opened))
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
        self._open_all()

    async def close(self) -> None:
        """Close all clients."""
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        for opened in self._opened.values():
            await opened.close()

    def _of(self, tenant: str) -> Waterfall | None:
        """Return the waterfall of ``tenant``, or None if it must not be served."""
        known = self._tenants.get(tenant)
        if known is None:
            return None
        enrichment = known.enrichment
        if not known.own_file and not enrichment.providers and enrichment.budget is None:
            return self._opened[""].waterfall
        opened = self._opened.get(known.file)
        if opened is None:
            accounts = self._accounts(known)
            if accounts is None:
                return None
            opened = self._opened[known.file] = self._open(accounts)
        return opened.waterfall

    def _open_all(self) -> None:
        """Open the waterfalls of all tenants with a file, so that :meth:`ready` knows their breakers."""
        for tenant in self._tenants.own:
            self._of(tenant.name)

    def _accounts(self, tenant: Tenant) -> ProviderAccounts | None:
        try:
            configs = provider_configs(tenant, self._settings)
        except AccountError:  # a secret has disappeared since the file was read
            return None
        if not tenant.own_file and not configs:
            configs = self._shared.configs  # with the budget of default.yaml
        return ProviderAccounts(tenant.file, configs, tenant.enrichment.budget)


def provider_configs(tenant: Tenant, settings: Settings) -> tuple[tuple[str, ProviderConfig], ...]:
    """Return the providers of the tenant's file, ranked in its order.

    Raises:
        AccountError: a secret is missing, or a value is invalid.

    """
    sections = tenant.enrichment.providers.items()
    return tuple(
        (name, section.config(connectors("provider")[name].Config, {"rank": rank}, settings))
        for rank, (name, section) in enumerate(sections)
    )


def problem(tenant: Tenant, settings: Settings) -> str:
    """Return what is wrong with the providers of ``tenant`` for this process, or ""."""
    try:
        provider_configs(tenant, settings)
    except AccountError as error:
        return f"enrichment.providers: {error}"
    return ""


async def _close_later(opened: OpenedWaterfall) -> None:
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(_CLOSE_S)
    await opened.close()
