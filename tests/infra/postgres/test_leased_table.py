"""The contract of a table of leased work: a row has one lease, and an ended lease cannot change it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from infra.outcomes import Reason
from infra.postgres.leased_rows import NEVER, Parked
from infra.postgres.pool import INFINITY, MINUS_INFINITY
from tests.infra.postgres.jobs import DONE, JobsTable

pytestmark = pytest.mark.integration


async def test_concurrent_claims_share_no_row_and_omit_none(jobs: JobsTable) -> None:
    await jobs.add(500)
    leases = await asyncio.gather(*(jobs.claim(40) for _ in range(14)))
    keys = [row.key for lease in leases for row in lease.rows]
    rest = await jobs.claim(500)
    keys += [row.key for row in rest.rows]
    assert sorted(map(int, keys)) == list(range(1, 501))
    assert (await jobs.claim(1)).rows == []


async def test_a_claim_returns_due_rows_of_its_scope_those_due_longest_first(jobs: JobsTable, clock: Any) -> None:
    await jobs.add(3)
    await jobs.add(3, 10, queue="another")
    for key, due_at in ((1, clock() + 1), (2, clock()), (3, clock() - 1)):
        await jobs.pool.execute(f"UPDATE {jobs.name} SET next_attempt_at = $2 WHERE id = $1", key, due_at)  # noqa: S608
    assert [row.key for row in (await jobs.claim(1)).rows] == ["3"]
    assert [row.key for row in (await jobs.claim(9)).rows] == ["2"]


async def test_after_a_lease_has_ended_its_token_changes_nothing(jobs: JobsTable, clock: Any) -> None:
    await jobs.add(1)
    first = await jobs.claim(1)
    clock.forward(59.9)
    assert (await jobs.claim(1)).rows == []
    clock.forward(0.2)
    second = await jobs.claim(1)
    held = dict(await jobs.row())
    assert await jobs.finish(first, [(first.rows[0], DONE)]) == set()
    assert await jobs.park(first, [(first.rows[0], Parked(Reason.TIMEOUT), clock())]) == set()
    await jobs.release(first, first.rows)
    assert not await jobs.renew(first)
    assert dict(await jobs.row()) == held
    assert await jobs.finish(second, [(second.rows[0], DONE)]) == {"1"}
    assert (await jobs.row())["handled"] == 1


async def test_a_finish_can_be_repeated(jobs: JobsTable) -> None:
    await jobs.add(1)
    lease = await jobs.claim(1)
    for _ in range(2):
        assert await jobs.finish(lease, [(lease.rows[0], DONE)]) == {"1"}
    assert (await jobs.row())["handled"] == 1


async def test_a_renewed_lease_starts_again(jobs: JobsTable, clock: Any) -> None:
    await jobs.add(2)
    lease = await jobs.claim(2)
    for _ in range(5):
        clock.forward(50)
        assert await jobs.renew(lease)
        assert (await jobs.claim(2)).rows == []
    assert await jobs.finish(lease, [(row, DONE) for row in lease.rows]) == {"1", "2"}


async def test_parked_rows_wait_alone_until_their_time_or_until_they_are_unparked(jobs: JobsTable, clock: Any) -> None:
    await jobs.add(3)
    lease = await jobs.claim(3)
    first, second, third = sorted(lease.rows, key=lambda row: row.key)
    await jobs.park(
        lease,
        [(first, Parked(Reason.CONFLICT), clock() + 5_000_000), (second, Parked(Reason.REJECTED, attempts=0), NEVER)],
    )
    await jobs.release(lease, [third])
    row = await jobs.row(1)
    assert (row["attempts"], row["last_error"], row["note"]) == (1, "conflict", "parked")
    row = await jobs.row(2)
    assert (row["attempts"], row["next_attempt_at"], row["claimed_until"]) == (0, INFINITY, MINUS_INFINITY)
    row = await jobs.row(3)
    assert (row["attempts"], row["last_error"], row["note"]) == (0, "", "")
    assert [row.key for row in (await jobs.claim(3)).rows] == ["3"]
    clock.forward(5)
    (again,) = (await jobs.claim(3)).rows
    assert (again.key, again.attempts, again.last_error) == ("1", 1, "conflict")
    clock.forward(10 * 365 * 86_400)
    assert "2" not in [row.key for row in (await jobs.claim(3)).rows]
    assert await jobs.unpark(["2", "77"]) == 1
    assert [row.key for row in (await jobs.claim(3)).rows] == ["2"]


async def test_a_released_row_is_due_no_earlier_than_requested(jobs: JobsTable, clock: Any) -> None:
    await jobs.add(1)
    lease = await jobs.claim(1)
    await jobs.release(lease, lease.rows, clock() + 1_000_000)
    assert (await jobs.claim(1)).rows == []
    clock.forward(1)
    lease = await jobs.claim(1)
    before = await jobs.row()
    await jobs.release(lease, lease.rows)
    assert (await jobs.row())["next_attempt_at"] == before["next_attempt_at"]


async def test_workers_with_the_same_rows_do_not_deadlock(jobs: JobsTable, clock: Any) -> None:
    await jobs.add(1000)

    async def work(order: int) -> None:
        for _ in range(15):
            lease = await jobs.claim(600)
            rows = lease.rows[::order]
            await jobs.park(lease, [(row, Parked(Reason.CONFLICT), clock()) for row in rows[::2]])
            await jobs.release(lease, rows[1::2])
            await jobs.unpark([str(key) for key in range(1000, 0, -1)])

    await asyncio.gather(work(1), work(-1), work(1), work(-1))
    assert await jobs.count("claimed_until > '-infinity'") == 0
