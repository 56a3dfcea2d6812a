"""A pool of a real Postgres, and a table of leased work for a single test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from infra.postgres.pool import connect
from tests.infra.postgres.jobs import JobsTable, Outcomes


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1_770_000_000_000_000

    def __call__(self) -> int:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += int(seconds * 1e6)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def outcomes() -> Outcomes:
    return Outcomes()


@pytest.fixture
async def pool(stack: Any) -> AsyncIterator[asyncpg.Pool]:
    async with await connect(stack.dsn, size=16, application="tests") as pool:
        yield pool


@pytest.fixture
async def jobs(pool: asyncpg.Pool, clock: Clock, unique: str) -> JobsTable:
    """Return an empty table that uses the clock of the test."""
    table = JobsTable(pool, f"jobs_{unique}", clock=clock)
    await table.create()
    return table
