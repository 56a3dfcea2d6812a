"""Which account the rows of ``crm_sync`` belong to: their ``destination`` is the scope of the account.

Guarantees: a call about a lead uses only the account of the lead's tenant. A row that was stored before its tenant had
an account of its own is moved to that account and is not synced here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import asyncpg

from infra.clock import Clock, now_us
from infra.outcomes import Reason
from infra.postgres.leased_rows import NEVER, Done, Lease, Parked, Released
from infra.postgres.pool import connection, transaction
from sinks.accounts import Accounts, Wakes
from sinks.crm import sync_statements as statements
from sinks.crm.sync_table import SyncRow

_OPEN_S = 3600.0  # timeout of the statement that adds all leads of a tenant

_Settled = Sequence[tuple[SyncRow, Done | Parked | Released]]
_Handle = Callable[[Lease[SyncRow]], Awaitable[_Settled]]


class AccountRows:
    """The rows of the account ``scope``. ``handle`` syncs leases of it; see :meth:`handle`."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        accounts: Accounts[Any],
        scope: str,
        handle: _Handle,
        wakes: Wakes,
        clock: Clock = now_us,
    ) -> None:
        self._pool = pool
        self._accounts = accounts
        self._scope = scope
        self._handle = handle
        self._wakes = wakes
        self._clock = clock

    async def handle(self, lease: Lease[SyncRow]) -> _Settled:
        """Sync the rows of ``lease`` whose tenant has this account. Move the others to the account of their tenant.

        A row whose tenant has no account any more is parked until a newer version is wanted.
        """
        scopes = {row.tenant: self._accounts.scope(row.tenant) for row in lease.rows}
        others = [row for row in lease.rows if scopes[row.tenant] != self._scope]
        if not others:
            return await self._handle(lease)
        moved: list[tuple[SyncRow, Done | Parked | Released]] = []
        for scope in {scopes[row.tenant] for row in others}:
            rows = [row for row in others if scopes[row.tenant] == scope]
            if scope is None:
                moved += [(row, Parked(Reason.UNKNOWN_TENANT, until=NEVER)) for row in rows]
            else:
                await self._forward(lease, rows, scope)
                moved += [(row, Released()) for row in rows]
        lease.rows[:] = [row for row in lease.rows if scopes[row.tenant] == self._scope]
        settled = await self._handle(lease) if lease.rows else []
        lease.rows += [row for row, _ in moved]
        return [*settled, *moved]

    async def open(self, tenant: str, shared: str) -> None:
        """Add all leads of ``tenant`` when its account is new, and drop what the account ``shared`` still had to do.

        ``shared``: the scope of the tenants without a file. Its records in that CRM account stay as they are.
        """
        async with transaction(self._pool) as postgres:
            if await postgres.fetchval(statements.OPEN, self._scope, tenant):
                await postgres.execute(statements.LEAVE, tenant, shared, timeout=_OPEN_S)
                await postgres.execute(statements.FILL, self._scope, tenant, self._clock(), timeout=_OPEN_S)

    async def _forward(self, lease: Lease[SyncRow], rows: Sequence[SyncRow], scope: str) -> None:
        values = (self._scope, lease.until, [row.key for row in rows], scope, self._clock())
        async with connection(self._pool) as postgres:
            await postgres.execute(statements.FORWARD, *values)
        self._wakes(scope).set()


async def close_accounts(pool: asyncpg.Pool, crm: str, kept: Sequence[str]) -> None:
    """Forget the accounts of ``crm`` but those of the scopes ``kept``: if one returns, it gets all leads again."""
    async with connection(pool) as postgres:
        await postgres.execute(statements.CLOSE, f"{crm}:", kept)
