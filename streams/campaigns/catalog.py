"""Holds the campaigns that run now, and reloads them when a file of the campaigns folder changes.

Guarantees:

- All campaigns and templates are replaced at once, and only if all files are valid. An invalid file at start is an
  error. An invalid file later is logged and sets the metric ``leadstream_campaigns_invalid`` to 1 until it is fixed;
  the last valid campaigns stay in use.
- The event types of the campaigns are written to the table ``signal_types`` before changed campaigns are used. Intake
  emits campaign signals for these types from its next batch on. It does not read campaign files, so an invalid file
  cannot stop it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from infra import metrics
from infra.errors import DependencyUnavailable
from infra.postgres.pool import transaction
from infra.runtime import Stop, log
from infra.settings import SettingsError
from streams.campaigns.templates import Templates, load_campaigns_and_templates
from streams.campaigns.triggers import Campaign, event_types

CONSUMER = "campaigns"
EVERY_TYPE = "*"  # an event type in signal_types that stands for all: intake emits signals for every type
_POLL_S = 1.0
_RETRY_S = 1.0

_Fingerprint = frozenset[tuple[str, int, int]]


@dataclass(frozen=True, slots=True)
class CampaignSet:
    """Campaigns and the templates that they were validated with."""

    campaigns: tuple[Campaign, ...]
    templates: Templates


class Catalog:
    """The campaigns of ``folder``. Callers must read ``current`` once for each record: it may change between two reads.

    Raises:
        SettingsError: a file is invalid at start. The message lists every problem.

    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen = _fingerprint(folder)
        self.current = _load(folder)

    async def follow_changes(self, pool: asyncpg.Pool, stop: Stop) -> None:
        """Register the event types, then look for changed files every second until ``stop`` and reload them."""
        await self._register(pool, self.current, stop)
        seen = self._seen
        while not await stop.wait(_POLL_S):
            seen, before = await asyncio.to_thread(_fingerprint, self._folder), seen
            # Loaded only if nothing has changed since the previous look: a folder that is still being copied may be
            # valid but incomplete.
            if seen == self._seen or seen != before:
                continue
            self._seen = seen
            try:
                changed = await asyncio.to_thread(_load_existing, self._folder)
            except SettingsError as error:
                metrics.CAMPAIGNS_INVALID.set(1)
                fields = {"folder": str(self._folder), "problems": str(error)}
                log(CONSUMER).error(
                    "campaign files are invalid; the last valid ones stay in use", extra={"fields": fields}
                )
                continue
            await self._register(pool, changed, stop)
            self.current = changed
            metrics.CAMPAIGNS_INVALID.set(0)
            names = [campaign.name for campaign in changed.campaigns]
            log(CONSUMER).info("campaigns loaded", extra={"fields": {"campaigns": names}})

    async def _register(self, pool: asyncpg.Pool, campaigns: CampaignSet, stop: Stop) -> None:
        while True:
            try:
                await register_signals(pool, event_types(campaigns.campaigns))
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
