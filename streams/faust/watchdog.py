"""A thread that ends the process when the event loop, the Faust app or the commits stand still."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from infra.runtime import Stop
from streams.faust.ordered import OrderedPipe, die

_BEAT_S = 1.0
_STUCK_S = 60.0
_REBALANCE_S = 120.0


class Stall:
    """Tells when there is work and no commit for too long; ``clock`` gives seconds."""

    def __init__(self, after_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._after_s = after_s
        self._clock = clock
        self._since: dict[Any, tuple[int, float]] = {}

    def saw(self, progress: Mapping[Any, tuple[int, int]], *, excused: bool = False) -> str:
        """Take (committed, end) of each partition; return why this is a stall, or nothing. ``excused`` starts anew."""
        now = self._clock()
        fresh: dict[Any, tuple[int, float]] = {}
        for tp, (committed, end) in progress.items():
            before = self._since.get(tp)
            if end <= committed or excused:
                continue
            fresh[tp] = before if before is not None and before[0] == committed else (committed, now)
        self._since = fresh
        late = [tp for tp, (_, since) in fresh.items() if now - since > self._after_s]
        return f"no commit for {self._after_s:.0f} s on {', '.join(map(str, late))}" if late else ""


class Watchdog:
    """A thread that ends the process when the loop, the app or the commits stand still."""

    def __init__(self, app: Any, pipe: OrderedPipe) -> None:
        self._app = app
        self._pipe = pipe
        self._stall = Stall(_STUCK_S)
        self._rebalancing = Stall(_REBALANCE_S)
        self._beaten = time.monotonic()
        self.ended = threading.Event()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    async def beat(self, stop: Stop) -> None:
        """Show that the loop lives, and look at what only the loop may look at; runs until cancelled."""
        while True:
            self._beaten = time.monotonic()
            app = self._app
            if app.crashed or app.consumer.crashed:
                die("Faust has crashed")
            busy = app.rebalancing
            stop.status.ready = not busy
            excused = bool(self._pipe.away) or busy
            reason = self._stall.saw(app.consumer.progress() if not busy else {}, excused=excused)
            reason = reason or self._rebalancing.saw({"rebalance": (0, 1)} if busy else {})
            if reason:
                die(reason)
            await asyncio.sleep(_BEAT_S)

    def _watch(self) -> None:
        while not self.ended.wait(5.0):
            if time.monotonic() - self._beaten > _STUCK_S:
                die("the event loop stands still")
