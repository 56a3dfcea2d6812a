"""The campaigns that run now: the files of one folder, checked as a whole, and read again when one of them changes.

Guarantees:

- Campaigns and templates are replaced together, and only by a folder without a problem. A problem at start is an error;
  a later one leaves the last valid campaigns running, is logged, and sets the metric ``leadstream_campaigns_invalid``
  to 1 until it is fixed.
- The event types that the campaigns listen to are in the table ``signal_types`` before a changed campaign is used, so
  that intake signals them from its next batch on. Intake itself reads no campaign: a wrong file cannot stop it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from infra import metrics
from infra.errors import DependencyAway
from infra.postgres.pool import transaction
from infra.runtime import Stop, log
from infra.settings import SettingsError
from streams.campaigns.templates import Templates, load_campaigns_and_templates
from streams.campaigns.triggers import Campaign, event_types

CONSUMER = "campaigns"
_LOOK_S = 1.0
_RETRY_S = 1.0

_Fingerprint = frozenset[tuple[str, int, int]]


@dataclass(frozen=True, slots=True)
class CampaignSet:
    """Campaigns and the templates that they were checked with."""

    campaigns: tuple[Campaign, ...]
    templates: Templates


class Catalog:
    """The campaigns of ``folder``; ``current`` may be replaced between two records, never within one.

    Raises:
        SettingsError: the folder has a problem at start; the message names every one.

    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen = _fingerprint(folder)
        self.current = _load(folder)

    async def keep_up(self, pool: asyncpg.Pool, stop: Stop) -> None:
        """Register the event types now, then follow the folder until ``stop``: a change takes effect within seconds."""
        await self._register(pool, self.current, stop)
        while not await stop.wait(_LOOK_S):
            seen = await asyncio.to_thread(_fingerprint, self._folder)
            if seen == self._seen:
                continue
            self._seen = seen
            try:
                changed = await asyncio.to_thread(_load, self._folder)
            except SettingsError as error:
                metrics.CAMPAIGNS_INVALID.set(1)
                fields = {"folder": str(self._folder), "problems": str(error)}
                log(CONSUMER).error("campaign files are invalid; the last valid ones run on", extra={"fields": fields})
                continue
            await self._register(pool, changed, stop)
            self.current = changed
            metrics.CAMPAIGNS_INVALID.set(0)
            names = [campaign.name for campaign in changed.campaigns]
            log(CONSUMER).info("campaigns loaded", extra={"fields": {"campaigns": names}})

    async def _register(self, pool: asyncpg.Pool, wanted: CampaignSet, stop: Stop) -> None:
        while True:
            try:
                await register_signals(pool, event_types(wanted.campaigns))
            except DependencyAway as error:
                log(CONSUMER).warning("event types not registered yet", extra={"fields": {"error": str(error)}})
                if await stop.wait(_RETRY_S):
                    return
            else:
                return


async def register_signals(pool: asyncpg.Pool, types: Collection[str]) -> None:
    """Replace the event types that campaigns listen to, in one transaction.

    Raises:
        DependencyAway: Postgres is unavailable; nothing changed.

    """
    async with transaction(pool) as connection:
        # One at a time: two processes that start together would otherwise wait for each other's rows in any order.
        await connection.execute("LOCK TABLE signal_types IN SHARE ROW EXCLUSIVE MODE")
        await connection.execute(
            "DELETE FROM signal_types WHERE consumer = $1 AND event_type <> ALL($2::text[])", CONSUMER, list(types)
        )
        await connection.execute(
            "INSERT INTO signal_types (consumer, event_type) SELECT $1, unnest($2::text[]) ON CONFLICT DO NOTHING",
            CONSUMER,
            sorted(types),
        )


def _load(folder: Path) -> CampaignSet:
    campaigns, templates = load_campaigns_and_templates(folder)
    return CampaignSet(tuple(campaigns.values()), templates)


def _fingerprint(folder: Path) -> _Fingerprint:
    """Return path, time of change and size of every file of the folder; a file that vanishes meanwhile is left out."""
    found: set[tuple[str, int, int]] = set()
    for file in [*folder.glob("*.yaml"), *folder.glob("templates/**/*")]:
        try:
            stat = file.stat()
        except FileNotFoundError:
            continue
        found.add((str(file), stat.st_mtime_ns, stat.st_size))
    return frozenset(found)
