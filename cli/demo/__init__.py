"""``leadstream demo``: see it all run, and see at the end that nothing was lost."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from infra.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(demo)


def demo(
    *,
    events: Annotated[int, typer.Option(min=100, help="How many events to send.")] = 20_000,
    seed: Annotated[int, typer.Option(help="The same seed sends the same events.")] = 7,
    rate: Annotated[int, typer.Option(min=0, help="Events a second; 0: as fast as they are taken.")] = 1000,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the counts to this file.")] = None,
    quiet: Annotated[bool, typer.Option(help="No live progress.")] = False,
) -> None:
    """Start the stack unless it is up, send lead events, wait for the last sink, and reconcile every count."""
    from cli.demo.run import run  # noqa: PLC0415 - other commands need not wait for its imports
    from cli.stack import bring_up  # noqa: PLC0415

    began = time.monotonic()
    places = bring_up(Settings.load().home, without=[])
    found: dict[str, Any] = asyncio.run(
        run(Settings.load(), places, events=events, seed=seed, rate=rate, quiet=quiet, began=began)
    )
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    if found["problems"]:
        raise typer.Exit(1)
