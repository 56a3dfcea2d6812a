"""One process under the supervisor: started, checked, restarted when it exits, stopped on request.

A process that exits is restarted with backoff: the delay doubles from 0.2 s to 10 s, and is 0.2 s again after the
process has run for 30 s. It is not restarted after exit code 78 (a problem that a restart does not fix, such as a wrong
setting), nor when it exits three times before it was ready.
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
from local.diagnosis import advice, log_tail
from local.launch import launch_command
from local.orphans import StartedProcesses
from local.process_spec import ProcessSpec, StackError

_BACKOFF_S = (0.2, 10.0)
_STABLE_S = 30.0
_START_S = 60.0
_MAX_EXITS_BEFORE_READY = 3
_POLL_S = 0.05
_CHECK_S = 2.0
_MAX_LOG_BYTES = 20_000_000


class Child:
    """One process. ``state``: starting, ready, waiting (for a dependency), restarting, failed or stopped."""

    def __init__(
        self,
        spec: ProcessSpec,
        log: Path,
        environment: Mapping[str, str],
        started_processes: StartedProcesses,
        on_change: Callable[[], None],
    ) -> None:
        self.spec = spec
        self.state = "starting"
        self.reason = ""  # why it failed
        self.pid: int | None = None  # None while it does not run
        self.restarts = 0
        self._log = log
        as_other_user = spec.user is not None
        if as_other_user:  # all processes of that user can read its environment: no addresses with passwords
            environment = {name: value for name, value in environment.items() if name == "LEADSTREAM_HOME"}
        self._environment = child_environment({**environment, **spec.environment}, inherit=not as_other_user)
        self._started_processes = started_processes
        self._on_change = on_change
        self._keep_running = False
        self._was_ready = False  # since start()
        self._exits = 0  # since it was last ready
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._spawning = asyncio.Lock()

    def start(self) -> None:
        """Start the process and restart it when it exits, until ``stop``. Does nothing when it already runs."""
        if self._keep_running and self._task is not None and not self._task.done():
            return
        self._keep_running, self._was_ready, self._exits, self.reason = True, False, 0, ""
        self._set_state("starting")
        self._task = asyncio.create_task(self._supervise())

    async def wait_ready(self) -> None:
        """Wait until the process is ready.

        Raises:
            StackError: the process failed, or was not ready within 60 seconds; the message says why.

        """
        deadline = time.monotonic() + _START_S
        while not self._was_ready:
            if self.state != "failed" and time.monotonic() > deadline:
                self._fail(f"was not ready within {_START_S:.0f} seconds")
            if self.state == "failed":
                raise StackError(self.reason)
            await asyncio.sleep(_POLL_S)

    async def restart(self) -> None:
        """Stop the process, start it again and count a restart. It is not ready yet when this returns."""
        await self.stop()
        self.restarts += 1
        self.start()

    async def stop(self, *, kill: bool = False) -> None:
        """Stop the process and its process group, and wait until they have ended.

        Sends the stop signal, then SIGKILL after ``spec.stop_s`` seconds; with ``kill`` SIGKILL at once.
        """
        self._keep_running = False
        async with self._spawning:  # a process that is being created now is stopped too
            process = self._process
        if process is not None:
            await self._terminate(process, kill=kill)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.pid = None
        if self.state != "failed":
            self._set_state("stopped")

    async def _terminate(self, process: asyncio.subprocess.Process, *, kill: bool) -> None:
        if process.returncode is None:
            with suppress(ProcessLookupError, TimeoutError):
                process.send_signal(signal.SIGKILL if kill else self.spec.stop_signal)
                await asyncio.wait_for(process.wait(), self.spec.stop_s)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()

    async def _supervise(self) -> None:
        delay = _BACKOFF_S[0]
        while self._keep_running:
            began = time.monotonic()
            exit_reason = await self._run_once()
            if not self._keep_running or self._failed_permanently(exit_reason):
                return
            delay = _BACKOFF_S[0] if time.monotonic() - began > _STABLE_S else delay
            self.restarts += 1
            self.pid = None
            self._set_state("restarting")
            await asyncio.sleep(delay)
            delay = min(delay * 2, _BACKOFF_S[1])

    async def _run_once(self) -> str:
        """Run the process until it exits, and return why it ended."""
        try:
            process = await self._spawn()
        except OSError as error:  # no memory or no disk space: it may be temporary
            return f"could not be started: {error.strerror}"
        except StackError as error:
            return f"could not be started: {error}"
        if process is None:
            return "was stopped"
        checks = asyncio.create_task(self._check_readiness())
        try:
            return _exit_reason(await process.wait())
        finally:
            checks.cancel()
            await asyncio.gather(checks, return_exceptions=True)

    def _failed_permanently(self, exit_reason: str) -> bool:
        """Count an exit; fail, and return True, when a restart would not help."""
        self._exits += 1
        if exit_reason == _exit_reason(EX_CONFIG):
            self._fail(f"cannot run until the problem in its log is fixed ({exit_reason})")
        elif not self._was_ready and self._exits >= _MAX_EXITS_BEFORE_READY:
            self._fail(f"exited {self._exits} times before it was ready ({exit_reason})")
        else:
            return False
        self.pid = None
        return True

    async def _spawn(self) -> asyncio.subprocess.Process | None:
        async with self._spawning:
            if not self._keep_running:
                return None
            if self.spec.prepare is not None:
                await asyncio.to_thread(self.spec.prepare)
            if self._log.exists() and self._log.stat().st_size > _MAX_LOG_BYTES:
                self._log.replace(self._log.with_suffix(".log.1"))
            with self._log.open("ab") as out:
                # The thread of the event loop is the main thread, which lives as long as the supervisor: local.launch.
                self._process = await asyncio.create_subprocess_exec(
                    *launch_command(
                        self.spec.command,
                        death_signal=self.spec.death_signal,
                        user=self.spec.user,
                        nice=self.spec.nice,
                    ),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    cwd=self.spec.folder,
                    env=self._environment,
                    start_new_session=True,  # Ctrl-C then signals only the supervisor, which stops the rest in order
                )
            self.pid = self._process.pid
            self._started_processes.record(self.spec.name, self.pid, self.spec.death_signal)
            self.state = "starting"
            self._on_change()
            return self._process

    async def _check_readiness(self) -> None:
        """Update the state. A worker that waits for a dependency is not ready on its health page."""
        ready_since_spawn = False
        while True:
            if await self.spec.is_ready():
                self._was_ready = ready_since_spawn = True
                self._exits, self.reason = 0, ""
                self._set_state("ready")
            elif ready_since_spawn:
                self._set_state("waiting")
            await asyncio.sleep(_CHECK_S if ready_since_spawn else _POLL_S)

    def _set_state(self, state: str) -> None:
        if state != self.state:
            self.state = state
            self._on_change()

    def _fail(self, problem: str) -> None:
        log_end = log_tail(self._log)
        fix = advice(log_end)
        heading = f"{self.spec.name} {problem}{': ' if fix else ''}{fix}"
        self.reason = f"{heading}\nThe end of its log ({self._log}):\n{log_end}"
        self._set_state("failed")


def _exit_reason(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
