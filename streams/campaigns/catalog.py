"""Holds the campaigns that run now, and reloads them when a file of a campaigns folder changes.

The campaigns of ``LEADSTREAM_CAMPAIGNS_DIR`` run for the tenants of ``default.yaml``; those of the folder that a
tenant's file names run for that tenant only. A tenant whose file names no folder has no campaigns.

Guarantees:

- The campaigns and templates of a folder are replaced at once, and only if all of its files are valid. An invalid file
  at start is an error; in the folder of one tenant it only makes the signals of that tenant dead letters, which can be
  replayed. An invalid file later is logged and sets the metric ``leadstream_campaigns_invalid`` to 1 until it is fixed;
  the last valid campaigns stay in use.
- The event types of the campaigns are written to the table ``signal_types`` before changed campaigns are used. Intake
  emits campaign signals for these types from its next batch on. It does not read campaign files, so an invalid file
  cannot stop it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from infra import metrics
from infra.errors import DependencyUnavailable
from infra.outcomes import Dead, Problem, Reason
from infra.postgres.pool import transaction
from infra.runtime import Stop, log
from infra.settings import SettingsError
from infra.tenants import State, Tenants
from streams.campaigns.templates import Templates, load_campaigns_and_templates
from streams.campaigns.triggers import Campaign, event_types

CONSUMER = "campaigns"
EVERY_TYPE = "*"  # an event type in signal_types that stands for all: intake emits signals for every type
_POLL_S = 1.0
_RETRY_S = 1.0

SHARED = ""  # the owner of the campaigns for tenants without a file

_Fingerprint = frozenset[tuple[str, int, int]]
_Seen = tuple[Path, _Fingerprint]
_UNKNOWN = Dead(Reason.UNKNOWN_TENANT, (Problem("/tenant", "no such tenant"),))
_INVALID = Dead(
    Reason.TENANT_INVALID,
    (Problem("/tenant", "the tenant's file or its campaigns are invalid: correct them, then replay this record"),),
)


@dataclass(frozen=True, slots=True)
class CampaignSet:
    """Campaigns and the templates that they were validated with."""

    campaigns: tuple[Campaign, ...]
    templates: Templates


EMPTY = CampaignSet((), Templates(Path()))


class Catalog:
    """The campaigns of ``folder``, and those of the folders of ``tenants``.

    Callers must read :attr:`current` or :meth:`of` once for each record: they may change between two reads.

    Raises:
        SettingsError: a file of ``folder`` is invalid at start. The message lists every problem.

    """

    def __init__(self, folder: Path, tenants: Tenants | None = None) -> None:
        self._folder = folder
        self._tenants = tenants
        self._seen: dict[str, _Seen] = {}
        self._invalid: set[str] = set()
        self._sets: dict[str, CampaignSet] = {}
        for owner, each in self._folders().items():
            self._seen[owner] = (each, _fingerprint(each))
            try:
                self._sets[owner] = _load(each)
            except SettingsError as error:
                if owner == SHARED:
                    raise
                self._report(owner, each, error)

    @property
    def current(self) -> CampaignSet:
        """The campaigns of the tenants without a file."""
        return self._sets[SHARED]

    def of(self, tenant: str) -> CampaignSet | Dead:
        """Return the campaigns of ``tenant``, or why its signals cannot be evaluated now."""
        if self._tenants is None:
            return self.current
        known = self._tenants.get(tenant)
        if known is None:
            unknown = self._tenants.state(tenant) is State.UNKNOWN
            return _UNKNOWN if unknown else _INVALID
        if not known.own_file:
            return self.current
        if known.campaigns is None:
            return EMPTY
        found = self._sets.get(tenant)
        return found or (_INVALID if tenant in self._invalid else EMPTY)

    async def follow_changes(self, pool: asyncpg.Pool, stop: Stop) -> None:
        """Register the event types, then look for changed files every second until ``stop`` and reload them."""
        await self._register(pool, self._sets, stop)
        before = dict(self._seen)
        while not await stop.wait(_POLL_S):
            folders = self._folders()
            now = {owner: (each, await asyncio.to_thread(_fingerprint, each)) for owner, each in folders.items()}
            # Loaded only if nothing has changed since the previous look: a folder that is still being copied may be
            # valid but incomplete.
            stable = [owner for owner in now if now[owner] == before.get(owner) and now[owner] != self._seen.get(owner)]
            gone = self._seen.keys() - now.keys()
            before = now
            if stable or gone:
                await self._replace({owner: now[owner] for owner in stable}, gone, pool, stop)

    async def _replace(
        self, changed: Mapping[str, _Seen], gone: Collection[str], pool: asyncpg.Pool, stop: Stop
    ) -> None:
        sets = {owner: each for owner, each in self._sets.items() if owner not in gone}
        for owner in gone:
            del self._seen[owner]
        self._invalid.difference_update(gone)
        loaded: list[str] = []
        for owner, seen in changed.items():
            self._seen[owner] = seen
            try:
                sets[owner] = await asyncio.to_thread(_load_existing, seen[0])
            except SettingsError as error:
                self._report(owner, seen[0], error)
            else:
                self._invalid.discard(owner)
                loaded.append(owner)
        await self._register(pool, sets, stop)
        self._sets = sets
        metrics.CAMPAIGNS_INVALID.set(bool(self._invalid))
        for owner in loaded:
            names = [campaign.name for campaign in sets[owner].campaigns]
            log(CONSUMER).info("campaigns loaded", extra={"fields": {"tenant": owner, "campaigns": names}})

    def _folders(self) -> dict[str, Path]:
        """Return the folder of each owner: of tenants, and of those without a file."""
        own = self._tenants.own if self._tenants is not None else ()
        found = {SHARED: self._folder}
        for tenant in own:
            if tenant.campaigns is not None:
                found[tenant.name if tenant.own_file else SHARED] = tenant.campaigns
        return found

    def _report(self, owner: str, folder: Path, error: SettingsError) -> None:
        self._invalid.add(owner)
        metrics.CAMPAIGNS_INVALID.set(1)
        fields = {"tenant": owner, "folder": str(folder), "problems": str(error)}
        log(CONSUMER).error("campaign files are invalid; the last valid ones stay in use", extra={"fields": fields})

    async def _register(self, pool: asyncpg.Pool, sets: Mapping[str, CampaignSet], stop: Stop) -> None:
        types = event_types(campaign for each in sets.values() for campaign in each.campaigns)
        while True:
            try:
                await register_signals(pool, types)
            except DependencyUnavailable as error:
                log(CONSUMER).warning("registration of event types is retried", extra={"fields": {"error": str(error)}})
                if await stop.wait(_RETRY_S):
                    return
            else:
                return


async def register_signals(pool: asyncpg.Pool, types: Collection[str]) -> None:
    """Replace the registered event types by ``types``, in one transaction.

    Raises:
        DependencyUnavailable: Postgres is unavailable; nothing was changed.

    """
    async with transaction(pool) as connection:
        # Without the lock, two processes that start together can deadlock on each other's rows.
        await connection.execute("LOCK TABLE signal_types IN SHARE ROW EXCLUSIVE MODE")
        await connection.execute(
            "DELETE FROM signal_types WHERE consumer = $1 AND event_type <> ALL($2::text[])", CONSUMER, list(types)
        )
        await connection.execute(
            "INSERT INTO signal_types (consumer, event_type) SELECT $1, unnest($2::text[]) ON CONFLICT DO NOTHING",
            CONSUMER,
            sorted(types),
        )


def _load_existing(folder: Path) -> CampaignSet:
    if not folder.is_dir():
        raise SettingsError(f"the folder {folder} is missing")
    return _load(folder)


def _load(folder: Path) -> CampaignSet:
    campaigns, templates = load_campaigns_and_templates(folder)
    return CampaignSet(tuple(campaigns.values()), templates)


def _fingerprint(folder: Path) -> _Fingerprint:
    """Return path, modification time and size of every file of the folder."""
    found: set[tuple[str, int, int]] = set()
    for file in [*folder.glob("*.yaml"), *folder.glob("templates/**/*")]:
        try:
            stat = file.stat()
        except OSError:  # deleted since the folder was listed, or a broken link
            continue
        found.add((str(file), stat.st_mtime_ns, stat.st_size))
    return frozenset(found)
