"""One process under the supervisor: started, watched, started again when it ends, stopped when asked.

A process that ends is started again after a pause that doubles from 0.2 s to 10 s and is short again after 30 s of
health. Exit code 78 means that a person has to mend something first: it is not started again.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from infra.runtime import EX_CONFIG
from infra.settings import child_environment
from local.launch import launched
from local.leftovers import Remembered
from local.part import Part, PartError, advice, tail

_BACKOFF_S = (0.2, 10.0)
_HEALTHY_S = 30.0
_START_S = 60.0
_STARTS = 3  # ends so often before it was ever ready: it will not get there by trying
_LOOK_S = 0.05
_WATCH_S = 2.0
_LOG_BYTES = 20_000_000


class Child:
    """One process. ``state``: starting, ready, waiting (for something it needs), restarting, failed, stopped."""

    def __init__(
        self,
        part: Part,
        log: Path,
        environment: Mapping[str, str],
        remembered: Remembered,
        changed: Callable[[], None],
    ) -> None:
        self.part = part
        self.state = "starting"
        self.reason = ""  # why it failed
        self.pid: int | None = None  # while it runs
        self.restarts = 0
        self._log = log
        self._environment = child_environment(dict(environment) | dict(part.environment))
        self._remembered = remembered
        self._changed = changed
        self._wanted = False
        self._was_ready = False
        self._ends = 0  # since it was last ready
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._spawning = asyncio.Lock()

    def start(self) -> None:
        """Start it, and keep it running from now on."""
        if self._wanted and self._task is not None and not self._task.done():
            return
        self._wanted, self._was_ready, self._ends, self.reason = True, False, 0, ""
        self._set("starting")
        self._task = asyncio.create_task(self._keep())

    async def ready(self) -> None:
        """Wait until it is ready. Raises PartError, which says why, when it fails or takes longer than a minute."""
        deadline = time.monotonic() + _START_S
        while not self._was_ready:
            if self.state != "failed" and time.monotonic() > deadline:
                self._fail("did not get ready in time")
            if self.state == "failed":
                raise PartError(self.reason)
            await asyncio.sleep(_LOOK_S)

    async def restart(self) -> None:
        """Stop it as a person would and start it again; counts as a restart."""
        await self.stop()
        self.restarts += 1
        self.start()

    async def stop(self, *, at_once: bool = False) -> None:
        """End it: by its signal, after its bound (or ``at_once``) by force, and with what it started itself."""
        self._wanted = False
        async with self._spawning:  # a process that is just being started is stopped too
            process = self._process
        if process is not None:
            await self._end(process, at_once=at_once)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.pid = None
        if self.state != "failed":
            self._set("stopped")

    async def _end(self, process: asyncio.subprocess.Process, *, at_once: bool) -> None:
        if process.returncode is None:
            with suppress(ProcessLookupError, TimeoutError):
                process.send_signal(signal.SIGKILL if at_once else self.part.stop_signal)
                await asyncio.wait_for(process.wait(), self.part.stop_s)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()

    async def _keep(self) -> None:
        pause = _BACKOFF_S[0]
        while self._wanted:
            began = time.monotonic()
            why = await self._once()
            if not self._wanted or self._is_over(why):
                return
            pause = _BACKOFF_S[0] if time.monotonic() - began > _HEALTHY_S else pause
            self.restarts += 1
            self.pid = None
            self._set("restarting")
            await asyncio.sleep(pause)
            pause = min(pause * 2, _BACKOFF_S[1])

    async def _once(self) -> str:
        """Run it until it ends, and return how it ended."""
        try:
            process = await self._spawn()
        except OSError as error:  # no memory, no disk: it may go by
            return f"could not be started: {error.strerror}"
        if process is None:
            return "was not wanted any more"
        watching = asyncio.create_task(self._watch())
        try:
            return _said(await process.wait())
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    def _is_over(self, why: str) -> bool:
        """Return whether there is no point in starting it again after it ended as ``why`` says."""
        self._ends += 1
        if why == _said(EX_CONFIG):
            self._fail(f"has to be mended by a person ({why})")
        elif not self._was_ready and self._ends >= _STARTS:
            self._fail(f"ended {self._ends} times before it was ready ({why})")
        else:
            return False
        self.pid = None
        return True

    async def _spawn(self) -> asyncio.subprocess.Process | None:
        async with self._spawning:
            if not self._wanted:
                return None
            if self._log.exists() and self._log.stat().st_size > _LOG_BYTES:
                self._log.replace(self._log.with_suffix(".log.1"))
            with self._log.open("ab") as out:
                # Started by the event loop's thread, which is the main one: see local.launch on threads.
                self._process = await asyncio.create_subprocess_exec(
                    *launched(
                        self.part.command,
                        signal=self.part.death_signal,
                        user=self.part.user,
                        nice=self.part.nice,
                    ),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    cwd="/" if self.part.user is not None else None,
                    env=self._environment,
                    start_new_session=True,  # Ctrl-C reaches the supervisor alone, which stops the others in order
                )
            self.pid = self._process.pid
            self._remembered.add(self.part.name, self.pid, self.part.death_signal)
            self.state = "starting"
            self._changed()
            return self._process

    async def _watch(self) -> None:
        """Keep the state honest: a worker that waits for a dependency says so on its health page."""
        since_spawn_ready = False
        while True:
            if await self.part.ready():
                self._was_ready = since_spawn_ready = True
                self._ends, self.reason = 0, ""
                self._set("ready")
            elif since_spawn_ready:
                self._set("waiting")
            await asyncio.sleep(_WATCH_S if since_spawn_ready else _LOOK_S)

    def _set(self, state: str) -> None:
        if state != self.state:
            self.state = state
            self._changed()

    def _fail(self, why: str) -> None:
        end = tail(self._log)
        mend = advice(end)
        heading = f"{self.part.name} {why}{': ' if mend else ''}{mend}"
        self.reason = f"{heading}\nThe end of its log ({self._log}):\n{end}"
        self._set("failed")


def _said(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
