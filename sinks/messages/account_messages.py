"""Which account sends a message: that of its tenant.

Guarantees: a message that was stored before its tenant had an account of its own is given to that account.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from infra.outcomes import Reason, What
from infra.postgres.leased_rows import Done, Lease, Parked, Released
from sinks.accounts import Accounts, Wakes
from sinks.messages.messages_table import FinalState, MessageRow, MessagesTable

_Settled = Sequence[tuple[MessageRow, Done | Parked | Released]]


class AccountMessages:
    """The messages of the account ``scope``. ``handle`` sends leases of one message."""

    def __init__(
        self,
        table: MessagesTable,
        accounts: Accounts[Any],
        scope: str,
        handle: Callable[[Lease[MessageRow]], Awaitable[_Settled]],
        wakes: Wakes,
    ) -> None:
        self._table = table
        self._accounts = accounts
        self._scope = scope
        self._handle = handle
        self._wakes = wakes

    async def handle(self, lease: Lease[MessageRow]) -> _Settled:
        """Send the message of ``lease``, or give it to the account of its tenant."""
        (row,) = lease.rows
        scope = self._accounts.scope(row.subject.tenant)
        if scope == self._scope:
            return await self._handle(lease)
        if scope is None:
            return [(row, Done(What.DEAD, Reason.UNKNOWN_TENANT, row.campaign, value=FinalState("failed")))]
        await self._table.forward(lease, row, scope)
        self._wakes(scope).set()
        return [(row, Released())]
