"""Changes of campaign files at run time, and the event types registered for intake."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from infra.postgres.pool import connect
from infra.runtime import Stop
from infra.settings import SettingsError
from streams.campaigns.catalog import Catalog, register_signals
from tests.conftest import Stack, eventually

CAMPAIGN = """
name: {name}
trigger: {{event: {event}}}
step: {{subject: Welcome, template: welcome.html.j2}}
"""


def write(folder: Path, name: str, event: str) -> None:
    (folder / f"{name}.yaml").write_text(CAMPAIGN.format(name=name, event=event), "utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "welcome.html.j2").write_text("<p>Welcome</p>", "utf-8")
    write(tmp_path, "first", "lead_created")
    return tmp_path


@pytest.fixture
async def pool(stack: Stack) -> AsyncIterator[asyncpg.Pool]:
    opened = await connect(stack.dsn, size=2, application="test")
    yield opened
    await register_signals(opened, [])
    await opened.close()


async def registered(pool: asyncpg.Pool) -> set[str]:
    rows = await pool.fetch("SELECT event_type FROM signal_types WHERE consumer = 'campaigns'")
    return {row[0] for row in rows}


def names(catalog: Catalog) -> list[str]:
    return [campaign.name for campaign in catalog.current.campaigns]


@pytest.mark.integration
async def test_a_campaign_added_or_removed_at_run_time_takes_effect_and_its_event_type_is_registered(
    folder: Path, pool: asyncpg.Pool
) -> None:
    stop, catalog = Stop(), Catalog(folder)
    following = asyncio.create_task(catalog.follow_changes(pool, stop))

    async def signalled(*types: str) -> bool:
        return await registered(pool) == set(types)

    await eventually(lambda: signalled("lead_created"))
    write(folder, "second", "meeting_booked")
    await eventually(lambda: signalled("lead_created", "meeting_booked"))
    await eventually(lambda: names(catalog) == ["first", "second"])
    (folder / "first.yaml").unlink()
    await eventually(lambda: signalled("meeting_booked"))
    await eventually(lambda: names(catalog) == ["second"])
    stop.request()
    await following


@pytest.mark.integration
async def test_when_a_file_becomes_invalid_the_last_valid_campaigns_stay_in_use(
    folder: Path, pool: asyncpg.Pool, caplog: pytest.LogCaptureFixture
) -> None:
    stop, catalog = Stop(), Catalog(folder)
    following = asyncio.create_task(catalog.follow_changes(pool, stop))
    (folder / "first.yaml").write_text("name: first\n", "utf-8")
    await eventually(lambda: any("invalid" in record.message for record in caplog.records))
    assert names(catalog) == ["first"]
    assert await registered(pool) == {"lead_created"}
    write(folder, "first", "meeting_booked")
    await eventually(lambda: catalog.current.campaigns[0].trigger.event == "meeting_booked")
    stop.request()
    await following


@pytest.mark.integration
async def test_while_the_folder_is_missing_the_campaigns_stay_in_use(
    folder: Path, pool: asyncpg.Pool, caplog: pytest.LogCaptureFixture
) -> None:
    stop, catalog = Stop(), Catalog(folder)
    following = asyncio.create_task(catalog.follow_changes(pool, stop))
    await asyncio.to_thread(folder.rename, folder.with_name("elsewhere"))
    await eventually(lambda: any("invalid" in record.message for record in caplog.records))
    assert names(catalog) == ["first"]
    assert await registered(pool) == {"lead_created"}
    stop.request()
    await following


def test_a_file_that_cannot_be_read_is_reported(folder: Path) -> None:
    (folder / ".#first.yaml").symlink_to("nobody@nowhere")
    (folder / "old.yaml").mkdir()
    with pytest.raises(SettingsError, match=r"(?s)#first\.yaml: cannot be read.*old\.yaml: cannot be read"):
        Catalog(folder)


def test_an_invalid_folder_at_start_is_an_error_that_names_the_file(folder: Path) -> None:
    write(folder, "second", "no_such_event")
    with pytest.raises(SettingsError, match=r"second\.yaml"):
        Catalog(folder)
