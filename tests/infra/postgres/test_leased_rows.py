"""The deadline of a lease, on which it depends by how much the clocks of workers may differ."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.postgres.leased_rows import ClaimedRow, Lease


@given(lease_s=st.floats(60, 3600), waited=st.floats(0, 0.25))
def test_the_deadline_is_half_of_the_lease_after_the_claim_however_long_the_rows_waited(
    lease_s: float, waited: float
) -> None:
    claimed_at = 1_770_000_000_000_000
    begun_at = claimed_at + round(waited * lease_s * 1e6)
    lease = Lease[ClaimedRow](claimed_at + round(lease_s * 1e6), [])

    async def left() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        before = loop.time()
        async with lease.begin(lease_s, begun_at):
            begun = lease.deadline - before
            before = loop.time()
            lease.extend(begun_at + round(lease_s * 1e6), lease_s, begun_at)
            return begun, lease.deadline - before

    begun, renewed = asyncio.run(left())
    assert begun == pytest.approx(lease_s * (0.5 - waited), abs=1)
    assert renewed == pytest.approx(lease_s / 2, abs=1)
