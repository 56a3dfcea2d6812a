"""A CRM connector that records its calls and returns the results that the test sets."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from sinks.crm import RetiredLead, Snapshot, Synced, SyncResult


class FakeCrm:
    name = "fake"
    batch_max = 100
    erases = True
    merge_delay_s = 0.0

    def __init__(
        self, result: Callable[[Snapshot], SyncResult] | None = None, gate: asyncio.Event | None = None
    ) -> None:
        self.result = result or (lambda snapshot: Synced(f"remote-{snapshot.lead_id}"))
        self.gate = gate
        self.sent: list[tuple[str, int]] = []
        self.now: Counter[str] = Counter()
        self.max_concurrent = 0

    async def ready(self) -> None:
        return

    def properties(self, snapshot: Snapshot) -> Mapping[str, str]:
        return {"version": str(snapshot.version)}  # every version changes something

    async def upsert(self, records: Sequence[Snapshot]) -> Sequence[SyncResult]:
        self.now.update(r.lead_id for r in records)
        self.max_concurrent = max(self.max_concurrent, *self.now.values())
        self.sent += [(r.lead_id, r.version) for r in records]
        await (self.gate.wait() if self.gate else asyncio.sleep(0))
        self.now.subtract(r.lead_id for r in records)
        return [self.result(record) for record in records]

    async def retire(self, leads: Sequence[RetiredLead]) -> Sequence[SyncResult]:
        return [Synced() for _ in leads]

    async def erase(self, leads: Sequence[RetiredLead]) -> Sequence[SyncResult]:
        return [Synced() for _ in leads]

    async def test(self) -> Sequence[str]:
        return ()
