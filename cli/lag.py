"""``lag``: the lag of each consumer group, in records and in seconds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from infra.settings import Settings

if TYPE_CHECKING:
    from rich.table import Table

    from operations.lag import Lag, LagReader, PartitionLag

_INTERVAL_S = 1.0
_WIDTH = 140  # columns of output that is not to a terminal
_COLOURS = {"ok": "green", "behind": "yellow", "new": "yellow", "unread": "magenta"}

Show = Callable[[list["PartitionLag"]], None]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(lag)


def lag(
    *,
    group: Annotated[list[str] | None, typer.Option(help="Only this consumer group. Repeat for several.")] = None,
    watch: Annotated[bool, typer.Option(help="Refresh every second until Ctrl-C.")] = False,
    only_totals: Annotated[bool, typer.Option("--totals", help="Only the total of each group.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; with --watch one line per second.")] = False,
) -> None:
    """Show how far each consumer group is behind, in total and per partition.

    Seconds: the age of the oldest record that is not committed.

    States: ok; behind; new: the group has not committed an offset yet;

    gap: records were deleted before they were consumed;

    beyond: the committed offset is after the end, since the topic was recreated;

    held: the next record is part of an open transaction;

    unread: the oldest record could not be read in time, so its age is unknown.
    """
    from infra.kafka import topics  # noqa: PLC0415 - the Kafka client costs every other command its import

    known = topics.installed_groups()
    if wrong := set(group or ()) - known.keys():
        typer.echo(f"No such group: {', '.join(sorted(wrong))}. Groups: {', '.join(known)}.", err=True)
        raise typer.Exit(2)
    chosen = {name: read for name, read in known.items() if not group or name in group}
    with _reader(chosen) as reader:
        output = _json(chosen, watch, only_totals) if as_json else _screen(chosen, watch, only_totals)
        with output as show:
            for rows in _readings(reader, watch=watch):
                show(rows)


@contextmanager
def _reader(groups: dict[str, list[str]]) -> Iterator[LagReader]:
    from operations.lag import LagReader  # noqa: PLC0415 - see above

    reader = LagReader(Settings.load(), groups)
    try:
        yield reader
    except KeyboardInterrupt:
        pass
    finally:
        reader.close()


def _readings(reader: LagReader, *, watch: bool) -> Iterator[list[PartitionLag]]:
    yield reader.read()
    while watch:
        time.sleep(_INTERVAL_S)
        yield reader.read()


@contextmanager
def _json(groups: dict[str, list[str]], watch: bool, only_totals: bool) -> Iterator[Show]:
    def show(rows: list[PartitionLag]) -> None:
        totals = {name: asdict(total) for name, total in _totals(rows, groups).items()}
        print(
            json.dumps(totals if only_totals else [asdict(row) for row in rows], indent=None if watch else 1),
            flush=True,
        )

    yield show


@contextmanager
def _screen(groups: dict[str, list[str]], watch: bool, only_totals: bool) -> Iterator[Show]:
    from rich.console import Console  # noqa: PLC0415 - not needed for JSON
    from rich.live import Live  # noqa: PLC0415

    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)

    def table(rows: list[PartitionLag]) -> Table:
        return _table([] if only_totals else rows, _totals(rows, groups))

    if not watch:
        yield lambda rows: console.print(table(rows))
        return
    with Live(console=console, auto_refresh=False) as live:
        yield lambda rows: live.update(table(rows), refresh=True)


def _totals(rows: list[PartitionLag], groups: dict[str, list[str]]) -> dict[str, Lag]:
    from operations.lag import totals  # noqa: PLC0415 - see above

    return totals(rows, groups)


def _table(rows: list[PartitionLag], totals: dict[str, Lag]) -> Table:
    """Return a table with one line for each group, followed by its partitions whose state is not ok."""
    from rich.table import Table  # noqa: PLC0415 - see above

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("group", "topic", "partition", "committed", "end", "lag", "seconds", "state"):
        table.add_column(
            title, justify="right" if title in {"partition", "committed", "end", "lag", "seconds"} else "left"
        )
    for name, total in totals.items():
        table.add_row(name, "", "", "", "", f"{total.messages:,}", _seconds(total.seconds), _state(total.state))
        for row in rows:
            if row.group == name and row.state != "ok":
                committed = "never" if row.committed is None else f"{row.committed:,}"
                places = (row.topic, str(row.partition), committed, f"{row.end:,}", f"{row.lag:,}")
                table.add_row("", *places, _seconds(row.seconds), _state(row.state), style="dim")
    return table


def _seconds(seconds: float | None) -> str:
    return "?" if seconds is None else f"{seconds:,.1f}"


def _state(state: str) -> str:
    colour = _COLOURS.get(state, "red")
    return f"[{colour}]{state}[/{colour}]"
