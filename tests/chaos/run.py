"""One run: events under way, every process killed in turn, some paused, disks full, a clock that jumps; the books."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from infra.clickhouse.client import ClickHouse
from infra.postgres.pool import connect
from infra.settings import Settings
from local.control import send_command
from tests.chaos import books, clocks, disks
from tests.chaos.load import TOPIC, Ledger, Load, generated
from tests.chaos.quiet import wait_until_idle
from tests.chaos.victims import Victims
from tests.conftest import eventually

Fault = Callable[[], Coroutine[Any, Any, None]]
VICTIMS = (
    *("api", "intake", "intake-2", "sink-clickhouse", "enrichment", "campaigns", "crm-hubspot", "messages-email"),
    *("kafka", "postgres", "clickhouse", "redis"),
)
WORD = "chaos"
ENDED = " (the worker had ended)"
_CLOCK = "intake-2"  # the process that a worker with a wrong clock replaces
_FULL_S = 60.0
_RECOVERY_S = 180.0


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything. ``pauses`` are names of processes, in turn; times are in seconds."""

    events: int
    kills: int
    between_kills_s: tuple[float, float]
    pauses: tuple[str, ...]
    pause_s: float
    full_s: float
    disk_bytes: int
    clock_steps_s: tuple[int, ...]
    stalled_s: float


SHORT = Size(8_000, 26, (1.0, 2.0), ("intake",), 12, 4, 1 << 30, (10_800, -10_800, 0), 75)
FULL = Size(
    1_000_000,
    216,
    (3.0, 5.0),
    ("intake", "sink-clickhouse", "kafka", "crm-hubspot", "postgres", "enrichment", "api", "messages-email"),
    60,
    30,
    12 << 30,
    (10_800, -10_800, 3_600, 0),
    300,
)


@dataclass(slots=True)
class Result:
    """What happened. ``books``: name -> what is wrong. ``faults``: name -> when it was there; ``skipped``: why not."""

    seed: int
    size: Size
    ledger: Ledger = field(default_factory=Ledger)
    kills: dict[str, int] = field(default_factory=dict)
    recovery_s: dict[str, list[float]] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    books: dict[str, list[str]] = field(default_factory=dict)
    counts: dict[str, int | str] = field(default_factory=dict)
    drained_s: float = 0.0


@contextmanager
def small_disks(home: Path, size: Size, result: Result) -> Iterator[dict[str, disks.SmallDisk]]:
    """Put the data of Kafka and of Postgres on small file systems, if this machine allows it."""
    made: dict[str, disks.SmallDisk] = {}
    if reason := disks.missing(home / "scratch"):
        result.skipped |= {f"full disk: {name}": reason for name in ("kafka", "postgres")}
    try:
        for name in () if reason else ("kafka", "postgres"):
            made[name] = disks.SmallDisk(home / name, size.disk_bytes)
        yield made
    finally:
        for disk in made.values():
            disk.unmount()


class Run:
    """One run against the stack in ``home``, whose ``state`` has its addresses."""

    def __init__(self, home: Path, state: dict[str, Any], result: Result, made: dict[str, disks.SmallDisk]) -> None:
        self._home = home
        self._state = state
        self._result = result
        self._size = result.size
        self._disks = made
        self._rng = random.Random(f"chaos {result.seed}")
        self._victims = Victims(home)
        self._settings = Settings.load({"LEADSTREAM_HOME": str(home)})
        self._began = time.monotonic()
        self._worker: clocks.SteppedWorker | None = None

    async def run(self) -> None:
        """Send, break, wait until all is done, and read the books."""
        load = Load(self._settings, self._state["api"]["url"])
        self._result.ledger = load.ledger
        watching = asyncio.create_task(self._victims.watch())
        mean_s = sum(self._size.between_kills_s) / 2
        records = generated(WORD, self._size.events, random.Random(f"events {self._result.seed}"))
        try:
            self._start_worker()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(load.send(records, self._size.events / (self._size.kills * mean_s)))
                tasks.create_task(self._break())
        finally:
            self._stop_worker()
            await load.close()
        await self._victims.recovered(_RECOVERY_S)
        watching.cancel()
        self._result.kills = dict(self._victims.kills)
        self._result.recovery_s = self._victims.recovery_s
        await self._read_books()

    # -- faults -------------------------------------------------------------------------------------------------------

    def _start_worker(self) -> None:
        faketime = clocks.library()
        if faketime is None:
            self._result.skipped["clock step"] = "libfaketime is not installed (Debian: apt-get install faketime)"
            return
        send_command(self._state["control"], "stop", _CLOCK)
        self._worker = clocks.SteppedWorker(self._home, f"local-{_CLOCK}", faketime)

    def _stop_worker(self) -> None:
        if self._worker is not None:
            if self._worker.process.poll() is not None:
                self._note("clock step", f"the end of it{ENDED}")
            self._worker.stop()
            self._worker = None
            send_command(self._state["control"], "start", _CLOCK)

    async def _break(self) -> None:
        size, kills = self._size, 0
        planned = self._planned()
        async with asyncio.TaskGroup() as others:
            while kills < size.kills:
                await asyncio.sleep(self._rng.uniform(*size.between_kills_s))
                while planned and planned[0][0] <= kills / size.kills:
                    others.create_task(planned.pop(0)[1]())
                kills += await self._kill_one()

    def _planned(self) -> list[tuple[float, Fault]]:
        """Return the other faults, each with the part of the run after which it begins."""

        def at(faults: list[Fault], first: float, last: float) -> Iterator[tuple[float, Fault]]:
            for number, fault in enumerate(faults):
                yield first + (last - first) * number / max(1, len(faults)), fault

        size = self._size
        pauses: list[Fault] = [partial(self._pause, name) for name in size.pauses]
        fills: list[Fault] = [partial(self._fill, name) for name in self._disks]
        steps: list[Fault] = [partial(self._step, step) for step in size.clock_steps_s]
        worker_end: list[Fault] = [partial(asyncio.to_thread, self._stop_worker)]
        planned = [*at(steps, 0.05, 0.4), *at(worker_end, 0.45, 0.45), *at(pauses, 0.1, 0.9), *at(fills, 0.5, 0.9)]
        return sorted(planned, key=lambda each: each[0])

    async def _kill_one(self) -> bool:
        """Kill the process that was killed least often, of those that can be; return whether there was one."""
        names = [name for name in VICTIMS if not (name == _CLOCK and self._worker is not None)]
        spared = [name for name in VICTIMS if not self._victims.kills[name]]
        if len(spared) >= self._size.kills - self._victims.kills.total():
            # The last kills are for processes that were never up when their turn came.
            names = [name for name in names if name in spared]
        self._rng.shuffle(names)
        names.sort(key=lambda name: self._victims.kills[name])
        return any(self._victims.kill(name) for name in names)

    async def _pause(self, name: str) -> None:
        await eventually(lambda: name in self._victims.pids(), _RECOVERY_S)
        with self._victims.frozen(name):
            self._note(f"paused: {name}", f"{self._size.pause_s:.0f} s (SIGSTOP)")
            await asyncio.sleep(self._size.pause_s)

    async def _fill(self, name: str) -> None:
        disk = self._disks[name]
        disk.fill()
        try:
            await eventually(lambda: disk.full, _FULL_S)
            await asyncio.sleep(self._size.full_s)
            self._note(f"full disk: {name}", f"{self._size.full_s:.0f} s")
        finally:
            disk.empty()

    async def _step(self, step_s: int) -> None:
        if self._worker is not None:
            self._worker.step(step_s)
            alive = self._worker.process.poll() is None
            self._note("clock step", f"to {step_s:+d} s{'' if alive else ENDED}")

    def _note(self, fault: str, what: str) -> None:
        at = time.monotonic() - self._began
        self._result.faults.setdefault(fault, []).append(f"{what}, {at:.0f} s after the start")

    # -- the end ------------------------------------------------------------------------------------------------------

    async def _read_books(self) -> None:
        result, settings = self._result, self._settings
        began = time.monotonic()
        pool = await connect(settings.database_url, size=2, application="chaos")
        try:
            async with ClickHouse(settings.clickhouse_url) as server:
                left = await wait_until_idle(settings, pool, ignored=(), stalled_s=self._size.stalled_s)
                result.drained_s = time.monotonic() - began
                result.books["all work is done"] = [left] if left else []
                topic = await asyncio.to_thread(books.read_topic, settings, TOPIC)
                result.books["nothing acknowledged is lost"] = books.acknowledged(result.ledger, topic)
                result.books["one outcome a record"] = await books.one_outcome(topic, server, WORD)
                suppressed = await asyncio.to_thread(books.suppressed_events, settings)
                result.books["accepted once"] = await books.accepted_once(result.ledger, pool, WORD, suppressed)
                result.books["versions without gaps"] = await books.versions(pool, WORD)
                result.books["ClickHouse equals Postgres"] = await books.clickhouse_equals_postgres(pool, server, WORD)
                simulators = self._home / "simulators"
                result.books["CRM equals canonical"] = await books.crm_equals_leads(
                    pool, simulators / "hubspot" / "hubspot.jsonl", WORD
                )
                wrong, mails, again = await books.mails_sent(pool, simulators / "smtp" / "mails.jsonl", WORD)
                result.books["messages sent"] = wrong
                ended, requests = await books.enrichment_ended(settings, server)
                result.books["enrichment ended"] = ended
                leads = await pool.fetchval("SELECT count(*) FROM leads WHERE merged_into IS NULL")
                result.counts |= {"records in leads.received": len(topic), "live leads": leads, "mails": mails}
                result.counts |= {"mails delivered again": again, "enrichment requests": requests}
        finally:
            with suppress(httpx.HTTPError):
                await pool.close()
