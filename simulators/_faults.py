"""Faults of an HTTP simulator, set by a test: late responses, timeouts and error statuses."""

from __future__ import annotations

import asyncio
import random

_TIMEOUT_S = 60


class HttpFaults:
    """The faults that apply to every request.

    ``values`` holds ``latency_ms`` (delay of each response), ``timeout_share`` (share of requests that wait 60 s),
    ``status`` and ``share`` (the share of requests, 1 by default, that fail with that status). Shares are from 0 to 1.
    The random numbers depend only on ``seed``.
    """

    def __init__(self, seed: int) -> None:
        self.values: dict[str, float] = {}
        self._random = random.Random(seed)

    async def delay(self) -> None:
        """Wait for the time that the faults set; return at once without faults."""
        if not self.values:
            return
        if latency := self.values.get("latency_ms"):
            await asyncio.sleep(latency / 1000)
        if self._random.random() < self.values.get("timeout_share", 0):
            await asyncio.sleep(_TIMEOUT_S)

    def status(self) -> int | None:
        """Return the status that this request fails with, or None."""
        if "status" in self.values and self._random.random() < self.values.get("share", 1):
            return int(self.values["status"])
        return None
