"""Stores the requests that no provider could answer: those that arrive at the same time in one statement."""

from __future__ import annotations

import asyncio
from collections import deque

from infra.postgres.leased_rows import Subject
from streams.enrichment.work_table import EnrichmentWorkTable, OpenRequest

_BATCH = 500


class Parking:
    """Collects requests for :meth:`EnrichmentWorkTable.add`. Sets ``wake`` when it has stored some."""

    def __init__(self, table: EnrichmentWorkTable, wake: asyncio.Event) -> None:
        self._table = table
        self._wake = wake
        self._waiting: deque[tuple[OpenRequest, asyncio.Future[Subject | None]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def add(self, request: OpenRequest) -> Subject | None:
        """Store ``request``; return the other request about its lead that was there before, if there was one.

        Raises:
            DependencyUnavailable: it may not be stored; call again.

        """
        stored: asyncio.Future[Subject | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, stored))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._store())
        return await stored

    async def _store(self) -> None:
        while self._waiting:
            batch = self._next_batch()
            try:
                earlier = await self._table.add([request for request, _ in batch.values()])
            except Exception as error:  # noqa: BLE001 - each caller gets it
                for _, stored in batch.values():
                    if not stored.done():
                        stored.set_exception(error)
                continue
            self._wake.set()
            for lead_id, (_, stored) in batch.items():
                if not stored.done():
                    stored.set_result(earlier.get(lead_id))

    def _next_batch(self) -> dict[str, tuple[OpenRequest, asyncio.Future[Subject | None]]]:
        """Return requests in their order, up to the second one about a lead."""
        batch: dict[str, tuple[OpenRequest, asyncio.Future[Subject | None]]] = {}
        while self._waiting and len(batch) < _BATCH and self._waiting[0][0].about.lead_id not in batch:
            request, stored = self._waiting.popleft()
            batch[request.about.lead_id] = (request, stored)
        return batch
