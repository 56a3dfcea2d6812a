"""A change of the registered event types is effective from the next batch."""

from __future__ import annotations

import asyncpg
import pytest

from tests.events import message, payload
from tests.streams.intake.conftest import intake, put

pytestmark = pytest.mark.integration


async def test_an_event_type_registered_at_run_time_is_signalled_from_the_next_batch(
    pool: asyncpg.Pool, unique: str
) -> None:
    stage = intake(pool)
    offset = 0

    async def signalled() -> list[str]:
        nonlocal offset
        kinds = {"consent_changed": {"purpose": "marketing", "status": "granted"}, "page_viewed": {"url": "/"}}
        batch = []
        for kind, own in kinds.items():
            offset += 1
            value = payload(kind, f"e-{offset}", tenant=unique, email="a@example.com", **own)
            batch.append(message(value, offset=offset))
        published = await put(stage, *batch)
        assert len(published["lead_change"]) == 2
        return [signal["event_type"] for signal in published["campaign_signal"]]

    try:
        assert await signalled() == []
        rows = [(consumer, kind) for consumer in (unique, unique + "2") for kind in ("page_viewed", "consent_changed")]
        await pool.executemany("INSERT INTO signal_types VALUES ($1, $2)", rows)
        assert await signalled() == ["consent_changed", "page_viewed"]
        await pool.execute("DELETE FROM signal_types WHERE consumer = $1 AND event_type = 'page_viewed'", unique)
        assert await signalled() == ["consent_changed", "page_viewed"]  # the other consumer still listens
        await pool.execute(
            "DELETE FROM signal_types WHERE event_type = 'page_viewed' AND consumer LIKE $1 || '%'", unique
        )
        assert await signalled() == ["consent_changed"]
        await pool.execute("INSERT INTO signal_types VALUES ($1, '*')", unique)
        assert await signalled() == ["consent_changed", "page_viewed"]  # while a campaign file is invalid: every type
    finally:
        await pool.execute("DELETE FROM signal_types WHERE consumer LIKE $1 || '%'", unique)
    assert await signalled() == []
