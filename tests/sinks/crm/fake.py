"""A CRM that answers as the test wants, to see calls; what a CRM is, the contract tests say."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

from sinks.crm import RetiredLead, Snapshot, Synced, SyncResult


class FakeCrm:
    name = "fake"
    batch_max = 100

    def __init__(
        self, answer: Callable[[Snapshot], SyncResult] | None = None, gate: asyncio.Event | None = None
    ) -> None:
        self.answer = answer or (lambda snapshot: Synced(f"remote-{snapshot.lead_id}"))
        self.gate = gate
        self.sent: list[tuple[str, int]] = []
        self.now: Counter[str] = Counter()
        self.most_at_once = 0

    async def ready(self) -> None:
        return

    async def upsert(self, records: Sequence[Snapshot]) -> Sequence[SyncResult]:
        self.now.update(r.lead_id for r in records)
        self.most_at_once = max(self.most_at_once, *self.now.values())
        self.sent += [(r.lead_id, r.version) for r in records]
        await (self.gate.wait() if self.gate else asyncio.sleep(0))
        self.now.subtract(r.lead_id for r in records)
        return [self.answer(record) for record in records]

    async def retire(self, gone: Sequence[RetiredLead]) -> Sequence[SyncResult]:
        return [Synced() for _ in gone]

    async def test(self) -> Sequence[str]:
        return ()
