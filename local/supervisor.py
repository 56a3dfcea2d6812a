"""The supervisor: starts, checks and stops every process of the embedded stack and of the pipeline.

``python -m local.supervisor [--parts A,B] [--no-pipeline] [--without NAME ...] [--brokers N]`` runs until SIGTERM or
SIGINT. A second signal kills all processes at once.

Guarantees:

- A process that exits is restarted, see :mod:`local.child`. When a part (Kafka, Postgres, ClickHouse, Redis) does not
  start, the whole start fails. When another process does not start, the rest runs and ``stack.json`` holds the reason.
- A stop ends all processes: first the workers, then the simulators, then the parts; by SIGKILL after a time limit.
- ``stack.json`` in the state folder holds the current state, ``stack.env`` the settings that connect to the stack.

Crash: the kernel kills the processes (Linux); the next supervisor of the folder ends those that still run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from infra.runtime import EX_CONFIG, run_together
from infra.settings import Settings, SettingsError, child_environment
from local import state
from local.child import Child
from local.control import VERBS, CommandRefusedError, ControlSocket
from local.diagnosis import advice, log_tail
from local.launch import launch_command
from local.orphans import StartedProcesses
from local.plan import PARTS, StackPlan, make_plan
from local.process_spec import ProcessSpec, StackError

_NEEDED_TO_PREPARE = {"kafka", "postgres", "clickhouse"}


class Supervisor:
    """Owns all processes of one state folder. The caller holds the folder's lock."""

    def __init__(self, home: Path, plan: StackPlan) -> None:
        self._home = home
        self._logs = home / "logs"
        self._plan = plan
        self._started_processes = StartedProcesses(home)
        self._children: dict[str, Child] = {}
        self._state = "starting"  # then up, stopping, and failed after an error
        self._error = ""
        self._control = ControlSocket(home, self._handle_command)
        self._stop_requested = asyncio.Event()
        self._kill = False  # a second signal came: stop by SIGKILL

    async def run(self, *, until_eof: bool = False) -> int:
        """Start everything, run until a signal (or the end of standard input), then stop everything.

        Returns:
            The exit code: 0 after a stop, 1 when the stack did not start.

        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        if until_eof:
            loop.add_reader(sys.stdin, self._on_eof, loop)  # nothing is written to it: readable means its end
        self._logs.mkdir(parents=True, exist_ok=True)
        self._started_processes.end_orphans()
        await self._control.open()
        start = asyncio.ensure_future(self._start())
        stop_requested = asyncio.ensure_future(self._stop_requested.wait())
        try:
            await asyncio.wait({start, stop_requested}, return_when=asyncio.FIRST_COMPLETED)
            if start.done():
                await start
                self._set_state("up")
                await stop_requested
        except StackError as error:
            self._error = str(error)
            sys.stderr.write(f"{error}\n")
        finally:
            start.cancel()
            stop_requested.cancel()
            await asyncio.gather(start, stop_requested, return_exceptions=True)
            await self._stop()
        return 1 if self._error else 0

    def _on_signal(self) -> None:
        if self._stop_requested.is_set():
            self._kill = True
            for child in self._children.values():
                if child.pid is not None:
                    os.kill(child.pid, signal.SIGKILL)
        self._stop_requested.set()

    def _on_eof(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.remove_reader(sys.stdin)
        self._stop_requested.set()

    # -- start --------------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        self._write_state()
        simulators = [self._start_child(spec) for spec in self._plan.simulators]
        await self._start_parts()
        state.write_environment(self._home, self._plan.environment)
        if self._plan.parts.keys() >= _NEEDED_TO_PREPARE:
            await self._prepare()
        workers = [self._start_child(spec) for spec in self._plan.workers]
        # A simulator or worker that fails keeps its reason; the other processes run.
        await asyncio.gather(*(child.wait_ready() for child in (*simulators, *workers)), return_exceptions=True)

    async def _start_parts(self) -> None:
        # The first failure cancels the start of the other parts.
        await run_together(*(self._start_part(name, factory) for name, factory in self._plan.parts.items()))

    async def _start_part(self, name: str, factory: Callable[[], ProcessSpec]) -> None:
        try:
            spec = await asyncio.to_thread(factory)
        except OSError as error:  # such as a full disk, or a folder that another user owns
            raise StackError(
                f"{name} cannot start: {error}{'; ' if (fix := advice(str(error))) else ''}{fix}"
            ) from error
        await self._start_child(spec).wait_ready()

    def _start_child(self, spec: ProcessSpec) -> Child:
        log = self._logs / f"{spec.name}.log"
        child = Child(spec, log, self._plan.environment, self._started_processes, self._write_state)
        self._children[spec.name] = child
        child.start()
        return child

    async def _prepare(self) -> None:
        """Create the topics and apply the migrations, by the command that a production installation runs."""
        log = self._logs / "prepare.log"
        command = launch_command([sys.executable, "-m", "cli", "prepare"], death_signal=signal.SIGKILL)
        with log.open("wb") as out:
            process = await asyncio.create_subprocess_exec(
                *command, stdout=out, stderr=out, env=child_environment(self._plan.environment), start_new_session=True
            )
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            process.kill()
            await process.wait()
            raise
        if code:
            raise StackError(
                f"topics or migrations could not be applied (exit code {code}). The end of the log ({log}):\n"
                f"{log_tail(log)}"
            )

    # -- control ------------------------------------------------------------------------------------------------------

    async def _handle_command(self, verb: str, name: str) -> None:
        if verb not in VERBS:
            raise CommandRefusedError(f"no command {verb!r}; there are: {', '.join(VERBS)}")
        if name not in self._children:
            raise CommandRefusedError(f"no process {name!r}; there are: {', '.join(self._children)}")
        if self._stop_requested.is_set():
            raise CommandRefusedError("the stack is stopping")
        child = self._children[name]
        if verb == "start":
            child.start()
        elif verb == "stop":
            await child.stop()
        else:
            await child.restart()
        self._write_state()

    # -- stop ---------------------------------------------------------------------------------------------------------

    async def _stop(self) -> None:
        self._set_state("stopping")
        (self._home / "stack.env").unlink(missing_ok=True)
        names = [{spec.name for spec in step} for step in (self._plan.workers, self._plan.simulators)]
        for step in (*names, set(self._plan.parts)):
            children = [child for name, child in self._children.items() if name in step]
            await asyncio.gather(*(child.stop(kill=self._kill) for child in children))
        self._started_processes.clear()
        self._control.close()
        if self._error:
            self._set_state("failed")
        else:
            (self._home / "stack.json").unlink(missing_ok=True)

    # -- stack.json ---------------------------------------------------------------------------------------------------

    def _set_state(self, new: str) -> None:
        self._state = new
        self._write_state()

    def _write_state(self) -> None:
        document = {
            "state": self._state,
            "error": self._error,
            "supervisor": {"pid": os.getpid()},
            "home": str(self._home),
            "control": str(self._control.path),
            **self._plan.current_addresses(self._home),
            "processes": [
                {"name": name, "pid": child.pid, "state": child.state, "restarts": child.restarts}
                for name, child in self._children.items()
            ],
            "failures": {name: child.reason for name, child in self._children.items() if child.reason},
        }
        path = self._home / "stack.json"
        try:
            state.write_atomically(path, json.dumps(document, indent=1), 0o600)  # the addresses hold passwords
        except OSError as error:  # such as a full disk: the processes run, `leadstream status` shows an old state
            sys.stderr.write(f"cannot write {path}: {error.strerror}; `leadstream status` may be out of date\n")


def main(arguments: Iterable[str] | None = None) -> None:
    """Run the supervisor of the state folder that the settings name.

    Args:
        arguments: the command line; None reads it from ``sys.argv``.

    Raises:
        SystemExit: always: 0 after a stop, 1 when the stack did not start or already runs, 78 for a wrong setting.

    """
    parser = argparse.ArgumentParser(prog="python -m local.supervisor")
    parser.add_argument(
        "--parts", default="", metavar="A,B", help=f"start only these of {', '.join(PARTS)}, and no pipeline"
    )
    parser.add_argument("--no-pipeline", action="store_true", help="start only Kafka, Postgres, ClickHouse and Redis")
    parser.add_argument("--until-eof", action="store_true", help="stop at the end of standard input")
    parser.add_argument(
        "--without", action="append", default=[], metavar="NAME", help="do not start this process; repeatable"
    )
    parser.add_argument("--brokers", type=int, help="number of Kafka brokers of a new state folder: 1 (default) or 3")
    options = parser.parse_args(None if arguments is None else list(arguments))
    try:
        home = Settings.load().home.resolve()
        with state.locked(home):
            (home / "stack.env").unlink(missing_ok=True)  # left by a killed supervisor; Settings.load() would read it
            plan = make_plan(
                home,
                Settings.load(),
                parts=options.parts.split(",") if options.parts else PARTS,
                pipeline=not (options.no_pipeline or options.parts),
                without=options.without,
                brokers=options.brokers,
            )
            raise SystemExit(asyncio.run(Supervisor(home, plan).run(until_eof=options.until_eof)))
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(EX_CONFIG) from None
    except StackError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(1) from None
    except OSError as error:  # of the state folder, or of a file in it
        fix = advice(str(error))
        sys.stderr.write(f"the state folder cannot be used: {error}{'; ' if fix else ''}{fix}\n")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
