"""The supervisor: starts, watches and stops every process of the embedded stack and of the pipeline.

``python -m infra.local.supervisor [--no-pipeline] [--without NAME ...]`` runs until SIGTERM or SIGINT. Guarantees:

- A process that ends is started again after a pause that grows from 0.2 s to 10 s; exit code 78 (a person has to mend
  something) is not started again.
- No process is left behind: an orderly stop ends all of them, in the opposite order, by force after a bound; and when
  the supervisor itself is killed, the kernel ends them (Linux: the parent-death signal).
- ``stack.json`` in the state folder always says what runs where; ``stack.env`` holds the settings that reach it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import fcntl
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from infra.local.clickhouse import clickhouse
from infra.local.kafka import kafka
from infra.local.part import Part, PartError, answers, free_port, listens, tail
from infra.local.postgres import postgres
from infra.local.redis import redis
from infra.processes import load
from infra.runtime import EX_CONFIG
from infra.settings import Settings, child_environment

_BACKOFF_S = (0.2, 10.0)
_HEALTHY_S = 30.0
_START_S = 60.0
_LOOK_S = 0.1
_WATCH_S = 2.0
_LOG_BYTES = 20_000_000
_PR_SET_PDEATHSIG = 1
_SIMULATORS = ("hubspot", "pdl", "smtp")


@dataclass(slots=True)
class _Child:
    part: Part
    state: str = "starting"  # starting, ready, waiting, restarting, failed, stopped
    pid: int = 0
    restarts: int = 0
    exit_code: int | None = None
    stopping: bool = False
    process: asyncio.subprocess.Process | None = None
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class Supervisor:
    """Owns all processes of one state folder."""

    def __init__(self, home: Path, *, pipeline: bool, without: Iterable[str]) -> None:
        self._home = home.resolve()
        self._logs = self._home / "logs"
        self._pipeline = pipeline
        self._without = frozenset(without)
        self._children: dict[str, _Child] = {}
        self._places: dict[str, Any] = {}
        self._environment: dict[str, str] = {}
        self._state = "starting"
        self._error = ""
        self._asked = asyncio.Event()

    async def run(self, *, until_eof: bool = False) -> int:
        """Start everything, watch it until a signal (or end of input), stop everything; return the code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked.set)
        if until_eof:
            loop.add_reader(sys.stdin, self._asked.set)  # nobody writes to it: what can be read is its end
        self._logs.mkdir(parents=True, exist_ok=True)
        starting = asyncio.ensure_future(self._start())
        asked = asyncio.ensure_future(self._asked.wait())
        try:
            await asyncio.wait({starting, asked}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                await starting
                self._state = "up"
                self._write()
                await asked
        except PartError as error:
            self._state, self._error = "failed", str(error)
            self._write()
            sys.stderr.write(f"{error}\n")
            return 1
        finally:
            starting.cancel()
            asked.cancel()
            await self._stop()
        return 0

    # -- starting -----------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        ports = self._ports()
        host = "127.0.0.1"
        self._environment = {
            "LEADSTREAM_HOME": str(self._home),
            "LEADSTREAM_KAFKA_BOOTSTRAP": f"{host}:{ports['kafka']}",
            "LEADSTREAM_DATABASE_URL": f"postgresql://leadstream@{host}:{ports['postgres']}/leadstream",
            "LEADSTREAM_CLICKHOUSE_URL": f"http://{host}:{ports['clickhouse']}/leadstream",
            "LEADSTREAM_REDIS_URL": f"redis://{host}:{ports['redis']}/0",
            "LEADSTREAM_API_PORT": str(ports["api"]),
            "LEADSTREAM_CRM_HUBSPOT_BASE_URL": f"http://{host}:{ports['hubspot']}",
            "LEADSTREAM_CRM_HUBSPOT_TOKEN": self._secret("hubspot"),
            "LEADSTREAM_PROVIDER_PDL_BASE_URL": f"http://{host}:{ports['pdl']}",
            "LEADSTREAM_PROVIDER_PDL_API_KEY": self._secret("pdl"),
            "LEADSTREAM_CHANNEL_EMAIL_URL": f"smtp://{host}:{ports['smtp']}",
        }
        self._places = {
            "kafka": {"bootstrap": self._environment["LEADSTREAM_KAFKA_BOOTSTRAP"]},
            "postgres": {"dsn": self._environment["LEADSTREAM_DATABASE_URL"]},
            "clickhouse": {"url": self._environment["LEADSTREAM_CLICKHOUSE_URL"]},
            "redis": {"url": self._environment["LEADSTREAM_REDIS_URL"]},
            "api": {"url": f"http://{host}:{ports['api']}"},
            "hubspot": {"url": f"http://{host}:{ports['hubspot']}"},
            "pdl": {"url": f"http://{host}:{ports['pdl']}"},
            "smtp": {"url": f"smtp://{host}:{ports['smtp']}", "inbox": f"http://{host}:{ports['smtp-inbox']}"},
        }
        env = self._home / "stack.env"
        env.touch(mode=0o600)
        env.write_text("".join(f"{k}={v}\n" for k, v in self._environment.items() if k != "LEADSTREAM_HOME"), "utf-8")
        self._write()
        makers: dict[str, Callable[[], Part]] = {
            "kafka": lambda: kafka(self._home, ports["kafka"], ports["kafka-controller"]),
            "postgres": lambda: postgres(self._home, ports["postgres"]),
            "clickhouse": lambda: clickhouse(self._home, ports["clickhouse"]),
            "redis": lambda: redis(self._home, ports["redis"]),
        }
        await asyncio.gather(*(self._bring_up_made(make) for name, make in makers.items() if name not in self._without))
        await self._prepare()
        if self._pipeline:
            parts = [*self._simulators(ports), *self._workers(ports)]
            await asyncio.gather(*(self._bring_up(part) for part in parts if part.name not in self._without))

    def _ports(self) -> dict[str, int]:
        kept = self._home / "ports.json"
        before: dict[str, int] = json.loads(kept.read_text("utf-8")) if kept.exists() else {}
        names = ["kafka", "kafka-controller", "postgres", "clickhouse", "redis", *_SIMULATORS, "smtp-inbox"]
        names += [name if name == "api" else f"health-{name}" for name in load()]
        ports: dict[str, int] = {}
        for name in names:
            port = free_port(before.get(name, 0))
            while port in ports.values():
                port = free_port()
            ports[name] = port
        kept.write_text(json.dumps(ports), "utf-8")
        return ports

    def _secret(self, name: str) -> str:
        file = self._home / f"{name}.secret"
        if not file.exists():
            file.touch(mode=0o600)
            file.write_text(f"pat-{secrets.token_hex(16)}", "utf-8")
        return file.read_text("utf-8")

    def _simulators(self, ports: dict[str, int]) -> Iterable[Part]:
        for name in _SIMULATORS:
            state = self._home / "simulators" / name
            state.mkdir(parents=True, exist_ok=True)
            words = [sys.executable, "-m", "infra.simulators", name, "--port", str(ports[name]), "--state", str(state)]
            if name == "smtp":
                words += ["--http-port", str(ports["smtp-inbox"])]
            yield Part(f"simulator-{name}", words, partial(listens, ports[name]))

    def _workers(self, ports: dict[str, int]) -> Iterable[Part]:
        for process in load().values():
            port = ports["api" if process.name == "api" else f"health-{process.name}"]
            own = {} if process.name == "api" else {"LEADSTREAM_HEALTH_PORT": str(port), "LEADSTREAM_INSTANCE": "local"}
            command = [sys.executable, "-m", process.module, *process.args]
            yield Part(process.name, command, partial(answers, f"http://127.0.0.1:{port}"), own, stop_s=20)

    async def _bring_up_made(self, make: Callable[[], Part]) -> None:
        await self._bring_up(await asyncio.to_thread(make))

    async def _bring_up(self, part: Part) -> None:
        """Start one process and wait until it is ready; it is restarted when it ends meanwhile, within a bound."""
        child = self._children[part.name] = _Child(part)
        child.tasks.append(asyncio.create_task(self._keep(child)))
        deadline = time.monotonic() + _START_S
        while not await part.ready():
            if child.state == "failed" or time.monotonic() > deadline:
                why = f"ended with {child.exit_code}" if child.exit_code is not None else "did not get ready in time"
                log = self._logs / f"{part.name}.log"
                raise PartError(f"{part.name} {why}. The end of its log ({log}):\n{tail(log)}")
            await asyncio.sleep(_LOOK_S)
        child.state = "ready"
        self._write()
        child.tasks.append(asyncio.create_task(self._watch(child)))

    async def _prepare(self) -> None:
        """Topics and migrations, by the same command that a production installation runs."""
        if {"kafka", "postgres", "clickhouse"} & self._without:
            return
        log = self._logs / "prepare.log"
        with log.open("wb") as out:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "cli", "prepare", stdout=out, stderr=out, env=child_environment(self._environment)
            )
            if await process.wait():
                raise PartError(f"topics and migrations could not be applied:\n{tail(log)}")

    # -- watching -----------------------------------------------------------------------------------------------------

    async def _keep(self, child: _Child) -> None:
        """Run a process for as long as it is wanted."""
        pause = _BACKOFF_S[0]
        while not child.stopping:
            began = time.monotonic()
            child.process = await self._spawn(child.part)
            child.pid = child.process.pid
            self._write()
            child.exit_code = await child.process.wait()
            if child.stopping:
                break
            if child.exit_code == EX_CONFIG:
                child.state = "failed"
                self._write()
                return
            if time.monotonic() - began > _HEALTHY_S:
                pause = _BACKOFF_S[0]
            child.state = "restarting"
            child.restarts += 1
            self._write()
            await asyncio.sleep(pause)
            pause = min(pause * 2, _BACKOFF_S[1])
        child.state = "stopped"

    async def _spawn(self, part: Part) -> asyncio.subprocess.Process:
        log = self._logs / f"{part.name}.log"
        if log.exists() and log.stat().st_size > _LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
        with log.open("ab") as out:
            return await asyncio.create_subprocess_exec(
                *part.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                user=part.user,
                cwd="/" if part.user is not None else None,
                env=child_environment(self._environment | dict(part.environment)),
                start_new_session=True,  # Ctrl-C reaches the supervisor alone, which stops the others in order
                preexec_fn=_die_with_parent(part.stop_signal),  # the supervisor has no other threads that hold locks
            )

    async def _watch(self, child: _Child) -> None:
        """Keep the state honest: a worker that waits for a dependency says so."""
        while child.state in ("ready", "waiting", "restarting", "starting"):
            await asyncio.sleep(_WATCH_S)
            if child.state != "restarting" or child.process is None or child.process.returncode is None:
                state = "ready" if await child.part.ready() else "waiting"
                if state != child.state and not child.stopping and child.state != "failed":
                    child.state = state
                    self._write()

    # -- stopping -----------------------------------------------------------------------------------------------------

    async def _stop(self) -> None:
        self._state = "failed" if self._error else "stopping"
        workers = [c for c in self._children.values() if c.part.name in load()]
        simulators = [c for c in self._children.values() if c.part.name.startswith("simulator-")]
        parts = [c for c in self._children.values() if c not in workers and c not in simulators]
        for group in (workers, simulators, parts):
            await asyncio.gather(*(self._end(child) for child in group))
        for name in ("stack.env", "stack.json"):
            if name != "stack.json" or not self._error:
                (self._home / name).unlink(missing_ok=True)

    async def _end(self, child: _Child) -> None:
        child.stopping = True
        process = child.process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(child.part.stop_signal)
            try:
                await asyncio.wait_for(process.wait(), child.part.stop_s)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        for task in child.tasks:
            task.cancel()
        await asyncio.gather(*child.tasks, return_exceptions=True)
        child.state = "stopped"

    def _write(self) -> None:
        document = {
            "state": self._state,
            "error": self._error,
            "supervisor": {"pid": os.getpid()},
            "home": str(self._home),
            **self._places,
            "processes": [
                {"name": name, "pid": child.pid, "state": child.state, "restarts": child.restarts}
                for name, child in self._children.items()
            ],
        }
        fresh = self._home / "stack.json.new"
        fresh.write_text(json.dumps(document, indent=1), "utf-8")
        fresh.replace(self._home / "stack.json")


def _die_with_parent(number: int) -> Callable[[], None] | None:
    """Return what a child does first so that the kernel signals it when its parent dies (Linux)."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    parent = os.getpid()

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it died in between
            os._exit(1)

    return ask


def main() -> None:
    """Run the supervisor of the state folder that the settings name; a second one for the same folder refuses."""
    parser = argparse.ArgumentParser(prog="python -m infra.local.supervisor")
    parser.add_argument("--no-pipeline", action="store_true", help="only Kafka, Postgres, ClickHouse and Redis")
    parser.add_argument("--until-eof", action="store_true", help="stop when standard input ends: with who started it")
    parser.add_argument("--without", action="append", default=[], metavar="NAME", help="leave this process out")
    words = parser.parse_args()
    home = Settings.load().home
    home.mkdir(parents=True, exist_ok=True)
    with (home / "supervisor.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.stderr.write(f"a stack already runs in {home}; see leadstream status\n")
            raise SystemExit(1) from None
        supervisor = Supervisor(home, pipeline=not words.no_pipeline, without=words.without)
        raise SystemExit(asyncio.run(supervisor.run(until_eof=words.until_eof)))


if __name__ == "__main__":
    main()
