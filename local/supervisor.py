"""The supervisor: starts, watches and stops every process of the embedded stack and of the pipeline.

``python -m local.supervisor [--parts A,B] [--no-pipeline] [--without NAME ...]`` runs until SIGTERM or SIGINT (a
second one ends all by force). Guarantees:

- A process that ends is started again, see :mod:`local.child`. A part (Kafka, Postgres, ClickHouse, Redis) that
  does not start ends the start; another process that does not costs only itself, and ``stack.json`` says why.
- No process is left behind: an orderly stop ends all of them, in the opposite order, by force after a bound; when the
  supervisor itself is killed the kernel ends them (Linux), and the next supervisor ends what is left anywhere.
- ``stack.json`` in the state folder always says what runs where; ``stack.env`` holds the settings that reach it.
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

from infra.runtime import EX_CONFIG
from infra.settings import Settings, SettingsError, child_environment
from local import state
from local.child import Child
from local.control import VERBS, Door, Refused
from local.launch import launched
from local.leftovers import Remembered
from local.part import Part, PartError, tail
from local.plan import PARTS, Plan, plan

_PREPARED = {"kafka", "postgres", "clickhouse"}


class Supervisor:
    """Owns all processes of one state folder."""

    def __init__(self, home: Path, wanted: Plan) -> None:
        self._home = home
        self._logs = home / "logs"
        self._plan = wanted
        self._remembered = Remembered(home)
        self._children: dict[str, Child] = {}
        self._state = "starting"  # then up, stopping; or failed
        self._error = ""
        self._door = Door(home, self._do)
        self._asked = asyncio.Event()
        self._at_once = False

    async def run(self, *, until_eof: bool = False) -> int:
        """Start everything, watch it until a signal (or end of input), stop everything; return the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        if until_eof:
            loop.add_reader(sys.stdin, self._ended, loop)  # nobody writes to it: what can be read is its end
        self._logs.mkdir(parents=True, exist_ok=True)
        self._remembered.sweep()
        await self._door.open()
        starting = asyncio.ensure_future(self._start())
        asked = asyncio.ensure_future(self._asked.wait())
        try:
            await asyncio.wait({starting, asked}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                await starting
                self._set("up")
                await asked
        except PartError as error:
            self._error = str(error)
            sys.stderr.write(f"{error}\n")
        finally:
            starting.cancel()
            asked.cancel()
            await asyncio.gather(starting, asked, return_exceptions=True)
            await self._stop()
        return 1 if self._error else 0

    def _signalled(self) -> None:
        if self._asked.is_set():
            self._at_once = True
            for child in self._children.values():
                if child.pid is not None:
                    os.kill(child.pid, signal.SIGKILL)
        self._asked.set()

    def _ended(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.remove_reader(sys.stdin)
        self._asked.set()

    # -- starting -----------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        self._write()
        early = [self._start_child(part) for part in self._plan.simulators]
        await self._bring_up_parts()
        state.write_environment(self._home, self._plan.environment)
        if self._plan.parts.keys() >= _PREPARED:
            await self._prepare()
        late = [self._start_child(part) for part in self._plan.workers]
        # What is not a part and does not start costs only itself: it has its reason, the others go on.
        await asyncio.gather(*(child.ready() for child in (*early, *late)), return_exceptions=True)

    async def _bring_up_parts(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:  # the first that fails ends the start of the others
                for make in self._plan.parts.values():
                    group.create_task(self._bring_up(make))
        except* PartError as errors:
            raise PartError("\n".join(map(str, errors.exceptions))) from None

    async def _bring_up(self, make: Callable[[], Part]) -> None:
        await self._start_child(await asyncio.to_thread(make)).ready()

    def _start_child(self, part: Part) -> Child:
        log = self._logs / f"{part.name}.log"
        child = Child(part, log, self._plan.environment, self._remembered, self._write)
        self._children[part.name] = child
        child.start()
        return child

    async def _prepare(self) -> None:
        """Topics and migrations, by the same command that a production installation runs."""
        log = self._logs / "prepare.log"
        command = launched([sys.executable, "-m", "cli", "prepare"], signal=signal.SIGKILL)
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
            raise PartError(f"topics and migrations could not be applied:\n{tail(log)}")

    # -- one process --------------------------------------------------------------------------------------------------

    async def _do(self, verb: str, name: str) -> None:
        if verb not in VERBS:
            raise Refused(f"cannot {verb}; only {', '.join(VERBS)}")
        if name not in self._children:
            raise Refused(f"no process {name!r}; there are: {', '.join(self._children)}")
        if self._asked.is_set():
            raise Refused("the stack is stopping")
        child = self._children[name]
        if verb == "start":
            child.start()
        elif verb == "stop":
            await child.stop()
        else:
            await child.restart()
        self._write()

    # -- stopping -----------------------------------------------------------------------------------------------------

    async def _stop(self) -> None:
        self._set("stopping")
        (self._home / "stack.env").unlink(missing_ok=True)
        names = [{part.name for part in step} for step in (self._plan.workers, self._plan.simulators)]
        for step in (*names, set(self._plan.parts)):
            children = [child for name, child in self._children.items() if name in step]
            await asyncio.gather(*(child.stop(at_once=self._at_once) for child in children))
        self._remembered.forget()
        self._door.close()
        if self._error:
            self._set("failed")
        else:
            (self._home / "stack.json").unlink(missing_ok=True)

    # -- telling ------------------------------------------------------------------------------------------------------

    def _set(self, new: str) -> None:
        self._state = new
        self._write()

    def _write(self) -> None:
        document = {
            "state": self._state,
            "error": self._error,
            "supervisor": {"pid": os.getpid()},
            "home": str(self._home),
            "control": str(self._door.path),
            **self._plan.seen(self._home),
            "processes": [
                {"name": name, "pid": child.pid, "state": child.state, "restarts": child.restarts}
                for name, child in self._children.items()
            ],
            "failures": {name: child.reason for name, child in self._children.items() if child.reason},
        }
        try:
            state.write(self._home / "stack.json", json.dumps(document, indent=1))
        except OSError as error:  # a full disk: what runs goes on, and what is shown is old
            sys.stderr.write(f"stack.json cannot be written: {error.strerror}\n")


def main(arguments: Iterable[str] | None = None) -> None:
    """Run the supervisor of the state folder that the settings name; a second one for the same folder refuses."""
    parser = argparse.ArgumentParser(prog="python -m local.supervisor")
    parser.add_argument("--parts", default="", metavar="A,B", help=f"only these of {', '.join(PARTS)}, and no pipeline")
    parser.add_argument("--no-pipeline", action="store_true", help="only Kafka, Postgres, ClickHouse and Redis")
    parser.add_argument("--until-eof", action="store_true", help="stop when standard input ends: with who started it")
    parser.add_argument("--without", action="append", default=[], metavar="NAME", help="leave this process out")
    words = parser.parse_args(None if arguments is None else list(arguments))
    try:
        home = Settings.load().home.resolve()
        with state.locked(home):
            (home / "stack.env").unlink(missing_ok=True)  # of a supervisor that was killed
            wanted = plan(
                home,
                Settings.load(),
                parts=words.parts.split(",") if words.parts else PARTS,
                pipeline=not (words.no_pipeline or words.parts),
                without=words.without,
            )
            raise SystemExit(asyncio.run(Supervisor(home, wanted).run(until_eof=words.until_eof)))
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(EX_CONFIG) from None
    except PartError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
