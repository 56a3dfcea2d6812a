"""The keys in memory: no request waits, revoked keys are refused, a flood of unknown keys is bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress

import pytest

from api.errors import Refusal
from api.keyring import KeyRing
from infra.errors import DependencyUnavailable
from infra.keys import ApiKey, digest_of
from tests.conftest import eventually

NEVER = 1 << 62


class Table:
    """Stands in for Postgres."""

    def __init__(self) -> None:
        self.keys: dict[bytes, ApiKey] = {}
        self.queries: list[int] = []
        self.used: list[str] = []
        self.unavailable = False

    def add(self, name: str, expires_at: int = NEVER) -> bytes:
        digest = digest_of(name.encode())
        self.keys[digest] = ApiKey(name, "acme", frozenset({"ingest"}), expires_at)
        return digest

    async def active(self, limit: int) -> dict[bytes, ApiKey]:
        self._answer()
        return dict(list(self.keys.items())[:limit])

    async def find(self, digests: Sequence[bytes]) -> Mapping[bytes, ApiKey]:
        self.queries.append(len(digests))
        self._answer()
        return {digest: self.keys[digest] for digest in digests if digest in self.keys}

    async def note_used(self, ids: Sequence[str]) -> None:
        self._answer()
        self.used += ids

    def _answer(self) -> None:
        if self.unavailable:
            raise DependencyUnavailable("Postgres", "down")


class Time:
    def __init__(self) -> None:
        self.s = 1000.0

    def clock(self) -> float:
        return self.s

    def now(self) -> int:
        return int(self.s * 1_000_000)


@asynccontextmanager
async def looking_up(ring: KeyRing) -> AsyncIterator[None]:
    running = asyncio.create_task(ring.run())
    yield
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def ring(table: Table, time: Time) -> KeyRing:
    return KeyRing(table, stale_s=60, now=time.now, clock=time.clock)


async def test_a_known_key_needs_no_query(ring: KeyRing, table: Table) -> None:
    digest = table.add("one")
    await ring.read()
    key = ring.get(digest)
    assert key is not None
    assert (key.id, table.queries) == ("one", [])


async def test_a_revoked_key_is_refused_after_the_next_read(ring: KeyRing, table: Table) -> None:
    digest = table.add("one")
    async with looking_up(ring):
        await eventually(lambda: ring.get(digest) is not None)
        del table.keys[digest]
        await eventually(lambda: ring.get(digest) is None, timeout_s=5)
        assert await ring.find(digest) is None


async def test_an_expired_key_is_refused_at_once(ring: KeyRing, table: Table, time: Time) -> None:
    digest = table.add("one", expires_at=time.now() + 1_000_000)
    await ring.read()
    assert ring.get(digest) is not None
    time.s += 1
    assert ring.get(digest) is None


async def test_a_key_that_was_created_since_is_looked_up_once_for_all_requests(ring: KeyRing, table: Table) -> None:
    await ring.read()
    digest = table.add("new")
    async with looking_up(ring):
        found = await asyncio.gather(*[ring.find(digest) for _ in range(100)])
    assert {key.id for key in found if key is not None} == {"new"}
    assert len(found) == 100
    assert table.queries == [1]


async def test_while_postgres_is_unavailable_known_keys_are_served_for_a_bounded_time(
    ring: KeyRing, table: Table, time: Time
) -> None:
    digest = table.add("one")
    async with looking_up(ring):
        await eventually(lambda: ring.get(digest) is not None)
        table.unavailable = True
        with pytest.raises(Refusal, match="Postgres is unavailable") as refused:
            await ring.find(digest_of(b"another"))
        assert refused.value.code == "keys_unavailable"
        time.s += 59
        assert ring.get(digest) is not None
        assert not ring.unavailable
        time.s += 2
        assert ring.get(digest) is None
        assert "Postgres" in ring.unavailable
        with pytest.raises(Refusal):
            await ring.find(digest)
        table.unavailable = False
        await eventually(lambda: ring.get(digest) is not None, timeout_s=10)


async def test_a_flood_of_random_keys_makes_few_queries_and_is_not_remembered(ring: KeyRing, table: Table) -> None:
    await ring.read()

    async def ask(number: int) -> str:
        try:
            return "unknown" if await ring.find(digest_of(b"%d" % number)) is None else "found"
        except Refusal as refusal:
            return refusal.code

    async with looking_up(ring):
        answers = [answer for _ in range(6) for answer in await asyncio.gather(*map(ask, range(5_000)))]
        # The same keys again are answered from memory, without a query.
        before = len(table.queries)
        assert await ring.find(digest_of(b"0")) is None
        assert len(table.queries) == before
        good = table.add("good")
        assert (await ring.find(good)) is not None  # is still found during and after the flood
    assert set(answers) == {"unknown", "overloaded"}
    assert max(table.queries) <= 500
    assert len(table.queries) <= 12 + 1


async def test_the_use_of_a_key_is_stored_once_a_day(ring: KeyRing, table: Table, time: Time) -> None:
    digest = table.add("one")
    await ring.read()
    for _ in range(3):
        ring.get(digest)
        await ring.read()
    assert table.used == ["one"]
    time.s += 86_400
    await ring.read()
    ring.get(digest)
    await ring.read()
    assert table.used == ["one", "one"]


async def test_a_use_during_an_outage_is_stored_after_it(ring: KeyRing, table: Table) -> None:
    digest = table.add("one")
    await ring.read()
    ring.get(digest)
    table.unavailable = True
    with pytest.raises(DependencyUnavailable):
        await ring.read()
    table.unavailable = False
    await ring.read()
    assert table.used == ["one"]
