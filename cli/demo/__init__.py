"""``demo``: sends generated lead events through the whole pipeline and checks that none is lost or duplicated."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.stack import Brokers, bring_up
from infra.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(demo)


def demo(
    *,
    events: Annotated[int, typer.Option(min=100, help="Number of events to send.")] = 20_000,
    seed: Annotated[int, typer.Option(help="Seed of the events: the same seed gives the same events.")] = 7,
    rate: Annotated[int, typer.Option(min=0, help="Events per second; 0: as fast as possible.")] = 1000,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the counts to this file as JSON.")] = None,
    quiet: Annotated[bool, typer.Option(help="Show no live progress.")] = False,
    brokers: Brokers = None,
) -> None:
    """Send generated lead events through the pipeline and check every count.

    Starts the embedded stack if it does not run, and waits until all events are processed.
    Exit code 1 when a count in one store does not match the count in another.
    """
    from cli.demo.run import run  # noqa: PLC0415 - its imports are slow, and only this command needs them

    started_at = time.monotonic()
    places = bring_up(Settings.load().home, without=[], brokers=brokers)
    counts: dict[str, Any] = asyncio.run(
        run(Settings.load(), places, events=events, seed=seed, rate=rate, quiet=quiet, started_at=started_at)
    )
    if json_file is not None:
        json_file.write_text(json.dumps(counts, indent=1) + "\n", "utf-8")
    if counts["problems"]:
        raise typer.Exit(1)
