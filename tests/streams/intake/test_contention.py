"""Workers that write the same leads: bounded retries with backoff, bisection, metrics, and each event once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

import asyncpg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from infra.errors import DependencyUnavailable
from streams.intake.decision import Decision
from streams.intake.event import Event, Identity
from streams.intake.identity import Refused
from streams.intake.identity_policy import default_policy
from streams.intake.part_size import PartSize
from streams.intake.store import Contended, Store, Transaction
from streams.intake.suppress import Suppression
from streams.intake.suppression_key import SuppressionKey
from streams.intake.transactions import decide_in_parts
from tests.conftest import eventually
from tests.events import event, message, payload
from tests.streams.intake.conftest import EVENT_PART, intake, leads, put
from tests.streams.intake.memory import MemoryStore

EVENTS = [event("page_viewed", f"e-{n}", email=f"{n}@example.com", offset=n) for n in range(8)]


class Server:
    """Decides parts without an event of ``contending``; a single such event fails as often as its value says."""

    def __init__(self, contending: dict[int, int], *, whole: int = 1_000_000) -> None:
        self.contending = contending
        self.whole = whole  # how often parts of several events fail
        self.committed: list[list[int]] = []
        self.calls = 0
        self.waits: list[float] = []

    async def decide(self, part: Sequence[Event]) -> Decision:
        self.calls += 1
        offsets = [one.offset for one in part]
        if len(part) > 1 and self.whole and not self.contending.keys().isdisjoint(offsets):
            self.whole -= 1
            raise Contended("deadlock")
        if len(part) == 1 and self.contending.get(offsets[0]):
            self.contending[offsets[0]] -= 1
            raise Contended("deadlock")
        self.committed.append(offsets)
        return Decision(len(self.committed))

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)


async def decide_all(events: Sequence[Event], server: Server) -> list[Decision]:
    parts = decide_in_parts(events, server.decide, PartSize(1 << 20), server.sleep)
    return [part.decision async for part in parts]


def counted(what: str) -> float:
    return REGISTRY.get_sample_value("leadstream_contention_total", {"stage": "intake", "what": what}) or 0


async def test_a_batch_that_contends_once_is_decided_in_one_transaction() -> None:
    server, before = Server({5: 0}, whole=1), counted("deadlock")

    decided = await decide_all(EVENTS, server)

    assert server.committed == [list(range(8))]
    assert decided == [Decision(1)]
    assert counted("deadlock") == before + len(server.waits) == before + 1


async def test_an_event_that_contends_twice_is_decided_alone_and_the_others_in_large_parts() -> None:
    server = Server({5: 3})

    decided = await decide_all(EVENTS, server)

    assert server.committed == [[0, 1, 2, 3], [4], [5], [6, 7]]
    assert [decision.now for decision in decided] == [1, 2, 3, 4]
    assert len(server.waits) == 2 + 2 + 2 + 3


async def test_an_event_that_always_contends_makes_the_loop_retry_the_batch() -> None:
    server = Server({5: 1_000_000})

    with pytest.raises(DependencyUnavailable, match="Postgres"):
        await decide_all(EVENTS, server)

    assert server.committed == [[0, 1, 2, 3], [4]]
    assert server.calls == 6 + 2 + 10
    assert all(0 <= wait <= 1 for wait in server.waits)


@given(st.dictionaries(st.integers(0, 7), st.integers(0, 9)), st.integers(0, 12))
@settings(max_examples=200, deadline=None)
async def test_each_event_is_decided_once_and_in_order(contending: dict[int, int], whole: int) -> None:
    server = Server(contending, whole=whole)

    await decide_all(EVENTS, server)

    assert [offset for part in server.committed for offset in part] == list(range(8))


async def test_without_events_there_is_no_transaction() -> None:
    server = Server({})
    assert await decide_all([], server) == []
    assert server.calls == 0


async def test_a_batch_in_parts_publishes_the_same_as_in_one_transaction(unique: str) -> None:
    values = [payload("lead_updated", f"e-{n}", tenant=unique, email=f"{n % 3}@example.com") for n in range(8)]
    batch = [message(value, offset=n) for n, value in enumerate(values)]

    def several(part: Sequence[Event]) -> None:
        if len(part) > 2:
            raise Contended("unique_violation")

    whole, parts = MemoryStore(), MemoryStore(several)
    published = [await put(intake(store), *batch) for store in (whole, parts)]

    assert parts.committed == [[f"e-{n}", f"e-{n + 1}"] for n in range(0, 8, 2)]
    assert parts.summary() == whole.summary()
    versions = [[(c["event_id"], c["version"]) for c in each["lead_change"]] for each in published]
    assert versions[0] == versions[1]
    for each in published:  # the last request about each lead has its newest version
        assert sorted({w["lead_id"]: w["version"] for w in each["crm_wanted"]}.values()) == [2, 3, 3]


class Breaks(Store):
    """A store in which more than two events contend, and that is unavailable after ``commits`` transactions."""

    def __init__(self, pool: asyncpg.Pool, commits: int) -> None:
        super().__init__(pool)
        self.commits = commits

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        async with super().transaction() as real:
            if not self.commits:
                raise DependencyUnavailable("Postgres", "test")
            yield _Pairs(real.connection, timedelta(days=90), 1 << 24, default_policy, SuppressionKey(b"key"))
        self.commits -= 1


class _Pairs(Transaction):
    async def write(self, decision: Decision, lifted: Mapping[Identity, Suppression]) -> list[Refused]:
        if len(decision.accepted) > 2:
            raise Contended("unique_violation")
        return await super().write(decision, lifted)


@pytest.mark.integration
@pytest.mark.parametrize("commits", [1, 2, 3])
async def test_after_a_crash_between_two_parts_of_a_batch_each_event_has_one_effect(
    pool: asyncpg.Pool, unique: str, commits: int
) -> None:
    values = [
        payload("form_submitted", f"e-{n}", tenant=unique, email=f"{n % 3}@example.com", form_id="f") for n in range(8)
    ]
    batch = [message(value, offset=n) for n, value in enumerate(values)]
    with pytest.raises(DependencyUnavailable):
        await put(intake(Breaks(pool, commits)), *batch)
    rows = "SELECT event_id, lead_id::text, version FROM lead_history WHERE tenant = $1"
    before = {tuple(row) for row in await pool.fetch(rows, unique)}
    assert len(before) == 2 * commits

    first = await put(intake(pool), *batch)
    again = await put(intake(pool), *batch)

    history = {tuple(row) for row in await pool.fetch(rows, unique)}
    assert before < history
    for published in (first, again):
        assert {(c["event_id"], c["lead_id"], c["version"]) for c in published["lead_change"]} == history
        assert len(published["lead_change"]) == len(published["campaign_signal"]) == 8
        assert published["outcome"] == []
    parts = [{c["event_id"]: [c[name] for name in EVENT_PART] for c in p["lead_change"]} for p in (first, again)]
    assert parts[0] == parts[1]
    assert sorted(lead["version"] for lead in await leads(pool, unique)) == [2, 3, 3]


class Gate(Store):
    """A store whose transactions wait for ``opened`` before they commit."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        super().__init__(pool)
        self.written, self.opened = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        async with super().transaction() as real:
            yield real
            self.written.set()
            await self.opened.wait()


@pytest.mark.integration
@pytest.mark.parametrize("same_event", [False, True])
async def test_two_workers_with_the_same_new_identity_make_one_lead(
    pool: asyncpg.Pool, unique: str, *, same_event: bool
) -> None:
    """The second worker waits for the identity that the first has bound, contends, and decides again."""
    ids = ["e-0", "e-0" if same_event else "e-1"]
    one, two = (payload("page_viewed", name, tenant=unique, email="a@example.com", url="/") for name in ids)
    other = payload("page_viewed", "other", tenant=unique, email="other@example.com", url="/")
    gate, before = Gate(pool), counted("unique_violation")
    first = asyncio.create_task(put(intake(gate), message(one, partition=1)))
    await asyncio.wait_for(gate.written.wait(), 30)
    second = asyncio.create_task(put(intake(pool), message(other, partition=2), message(two, partition=2, offset=1)))

    async def blocked() -> bool:
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%identities%'"
        return bool(await pool.fetchval(waiting))

    await eventually(blocked)
    gate.opened.set()
    published = await asyncio.gather(first, second)

    assert counted("unique_violation") == before + 1
    found = sorted((c["event_id"], c["version"]) for each in published for c in each["lead_change"])
    assert found == sorted([("e-0", 1), ("other", 1)] + [("e-1", 2)] * (not same_event))
    assert len(published[1]["outcome"]) == same_event
    assert len(await leads(pool, unique)) == 2
