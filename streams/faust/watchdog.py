"""Ends the process when the event loop hangs, the Faust app has crashed, or commits make no progress."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from infra.runtime import Stop
from streams.faust.ordered import OrderedPipe, exit_at_once

_BEAT_S = 1.0
_WATCH_S = 5.0
_STALL_S = 60.0
_WAIT_S = 1800.0
_REBALANCE_S = 120.0


class StallDetector:
    """Detects partitions that have records but no new commit for more than ``after_s`` seconds.

    ``clock`` returns seconds; only differences count.
    """

    def __init__(self, after_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._after_s = after_s
        self._clock = clock
        self._since: dict[Any, tuple[int, float]] = {}

    def check(self, progress: Mapping[Any, tuple[int, int]], *, excused: bool = False) -> str:
        """Return a description of the stall, or "" if there is none.

        Args:
            progress: (committed offset, end offset) of each partition.
            excused: there is a reason for no commits; every partition's time starts again at 0.

        """
        now = self._clock()
        pending: dict[Any, tuple[int, float]] = {}
        for tp, (committed, end) in progress.items():
            before = self._since.get(tp)
            if end <= committed or excused:
                continue
            pending[tp] = before if before is not None and before[0] == committed else (committed, now)
        self._since = pending
        stalled = [tp for tp, (_, since) in pending.items() if now - since > self._after_s]
        return f"no commit for {self._after_s:.0f} s on {', '.join(map(str, stalled))}" if stalled else ""


class Commits:
    """Detects that commits make no progress.

    A worker reads a backlog of several partitions one after the other, so a partition may wait for long while others
    make progress. It is stalled if a record of it is in process for a minute, or if no partition makes progress, or if
    it waits for longer than any backlog explains.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._in_process = StallDetector(_STALL_S, clock)
        self._all = StallDetector(_STALL_S, clock)
        self._waiting = StallDetector(_WAIT_S, clock)

    def check(
        self, progress: Mapping[Any, tuple[int, int]], in_process: Collection[Any], *, excused: bool = False
    ) -> str:
        """Return a description of the stall, or "" if there is none.

        Args:
            progress: (committed offset, end offset) of each partition.
            in_process: the partitions with records that are accepted and not acked.
            excused: there is a reason for no commits.

        """
        total = sum(committed for committed, _ in progress.values()), sum(end for _, end in progress.values())
        found = (
            self._in_process.check({tp: each for tp, each in progress.items() if tp in in_process}, excused=excused),
            self._all.check({"any partition": total}, excused=excused),
            self._waiting.check(progress, excused=excused),
        )
        return next(filter(None, found), "")


class Watchdog:
    """Watches the event loop from a thread, and the Faust app and its commits from the event loop.

    :meth:`beat` must run in the event loop. Set ``ended`` to end the thread.
    """

    def __init__(self, app: Any, pipe: OrderedPipe) -> None:
        self._app = app
        self._pipe = pipe
        self._commits = Commits()
        self._rebalance = StallDetector(_REBALANCE_S)
        self._last_beat = time.monotonic()
        self.ended = threading.Event()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    async def beat(self, stop: Stop) -> None:
        """Check the app and its commits every second, and update ``stop.status.ready``; runs until cancelled."""
        while True:
            self._last_beat = time.monotonic()
            app = self._app
            if app.crashed or app.consumer.crashed:
                exit_at_once("the Faust app has crashed")
            rebalancing = app.rebalancing
            stop.status.ready = not rebalancing
            excused = bool(self._pipe.unavailable) or rebalancing
            progress = {} if rebalancing else app.consumer.progress()
            if reason := self._commits.check(progress, self._pipe.in_process, excused=excused):
                exit_at_once(reason)
            if self._rebalance.check({"rebalance": (0, 1)} if rebalancing else {}):
                exit_at_once(f"a rebalance takes more than {_REBALANCE_S:.0f} s")
            await asyncio.sleep(_BEAT_S)

    def _watch(self) -> None:
        while not self.ended.wait(_WATCH_S):
            if time.monotonic() - self._last_beat > _STALL_S:
                exit_at_once("the event loop hangs")
