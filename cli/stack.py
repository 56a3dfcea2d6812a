"""``up``, ``down``, ``restart`` and ``status`` of the embedded stack."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from infra.settings import Settings

_WAIT_S = 180.0
_DOWN_S = 90.0
_LOOK_S = 0.1
_COLOURS = {"ready": "green", "waiting": "yellow", "failed": "red", "restarting": "red"}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(up)
    app.command()(down)
    app.command()(restart)
    app.command()(status)


def up(
    *,
    foreground: Annotated[bool, typer.Option(help="Stay in the foreground until Ctrl-C.")] = False,
    no_pipeline: Annotated[bool, typer.Option(help="Only Kafka, Postgres, ClickHouse and Redis.")] = False,
    without: Annotated[list[str] | None, typer.Option(help="Leave this process out.")] = None,
) -> None:
    """Start the stack and the pipeline and wait until all of it is healthy."""
    bring_up(Settings.load().home, foreground=foreground, no_pipeline=no_pipeline, without=without or [])


def bring_up(home: Path, *, foreground: bool = False, no_pipeline: bool = False, without: list[str]) -> dict[str, Any]:
    """Start the stack of ``home`` unless it runs; return its status. Raises typer.Exit(1) with the reason printed."""
    console = Console(stderr=True)
    if running(home):
        console.print(f"The stack in {home} is up already.")
        return read(home)
    home.mkdir(parents=True, exist_ok=True)
    (home / "stack.json").unlink(missing_ok=True)
    command = [sys.executable, "-m", "infra.local.supervisor", *(["--no-pipeline"] if no_pipeline else [])]
    command += [word for name in without for word in ("--without", name)]
    if foreground:
        os.execv(command[0], command)  # noqa: S606 - our own interpreter
    began = time.monotonic()
    (home / "logs").mkdir(exist_ok=True)
    with (home / "logs" / "supervisor.log").open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, close_fds=True
        )
    try:
        with console.status("starting") as line:
            while (state := read(home)).get("state") != "up":
                if process.poll() is not None or time.monotonic() - began > _WAIT_S:
                    why = state.get("error") or f"the supervisor ended; see {home / 'logs' / 'supervisor.log'}"
                    console.print(f"[red]The stack did not start.[/red] {why}", highlight=False)
                    process.terminate()
                    raise typer.Exit(1)
                names = [p["name"] for p in state.get("processes", []) if p["state"] != "ready"]
                line.update(f"starting {', '.join(names) or '…'}")
                time.sleep(_LOOK_S)
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    count = len(state["processes"])
    console.print(
        f"Up: {count} processes, all healthy, in {time.monotonic() - began:.1f} s. API: {state['api']['url']}"
    )
    return state


def down() -> None:
    """Stop the pipeline and the stack and wait until every process is gone."""
    home = Settings.load().home
    console = Console(stderr=True)
    if not running(home):
        console.print("Nothing runs here.")
        return
    pid = int(read(home)["supervisor"]["pid"])
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _DOWN_S
    with console.status("stopping"):
        while running(home):
            if time.monotonic() > deadline:
                console.print(f"[red]The supervisor (pid {pid}) is still stopping; see {home / 'logs'}[/red]")
                raise typer.Exit(1)
            time.sleep(_LOOK_S)
    console.print("Down.")


def restart(name: Annotated[str, typer.Argument(help="A process, by its name in `leadstream status`.")]) -> None:
    """Stop one process; the supervisor starts it again at once."""
    home = Settings.load().home
    processes = {p["name"]: p for p in read(home).get("processes", [])} if running(home) else {}
    if name not in processes:
        Console(stderr=True).print(f"No process {name!r} runs here; there are: {', '.join(processes) or 'none'}")
        raise typer.Exit(1)
    os.kill(int(processes[name]["pid"]), signal.SIGTERM)


def status(*, as_json: Annotated[bool, typer.Option("--json", help="For other tools.")] = False) -> None:
    """Say what runs, where it is and how it is."""
    home = Settings.load().home
    if not running(home):
        if as_json:
            print(json.dumps({"state": "down", "processes": []}))
        else:
            Console(stderr=True).print(f"Nothing runs in {home}; start it with `leadstream up`.")
        raise typer.Exit(1)
    state = read(home)
    if as_json:
        print(json.dumps(state, indent=1))
        return
    console = Console()
    for place in ("kafka", "postgres", "clickhouse", "redis", "api"):
        console.print(f"{place:<11}{' '.join(map(str, state.get(place, {}).values()))}", highlight=False)
    table = Table("process", "pid", "state", "restarts", box=None, pad_edge=False)
    for process in state["processes"]:
        colour = _COLOURS.get(process["state"], "white")
        said = f"[{colour}]{process['state']}[/{colour}]"
        table.add_row(process["name"], str(process["pid"]), said, str(process["restarts"]))
    console.print(table)


def running(home: Path) -> bool:
    """Return whether the supervisor of ``home`` lives."""
    pid = read(home).get("supervisor", {}).get("pid")
    if not pid:
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    # A process id is used again after a while: it has to be a supervisor.
    command = Path(f"/proc/{pid}/cmdline")
    return not command.exists() or b"infra.local.supervisor" in command.read_bytes()


def read(home: Path) -> dict[str, Any]:
    """Return what the supervisor of ``home`` last wrote, or nothing."""
    try:
        found: dict[str, Any] = json.loads((home / "stack.json").read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found
