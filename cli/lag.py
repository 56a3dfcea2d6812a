"""``lag``: how far each consumer group is behind, in messages and in seconds."""

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

    from infra.kafka.lag import Lag, LagReader, PartitionLag

_EVERY_S = 1.0
_WIDE = 140
_COLOURS = {"ok": "green", "behind": "yellow", "new": "yellow", "unread": "magenta"}

Take = Callable[[list["PartitionLag"]], None]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(lag)


def lag(
    *,
    group: Annotated[list[str] | None, typer.Option(help="Only this consumer group; can be repeated.")] = None,
    watch: Annotated[bool, typer.Option(help="Refresh once a second, until Ctrl-C.")] = False,
    only_totals: Annotated[bool, typer.Option("--totals", help="Only the total of each group.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; with --watch one line a second.")] = False,
) -> None:
    """Show how far consumers are behind: per partition, and in total per group.

    Seconds are the age of the oldest record that is not processed. States: ok, behind, new (never committed), gap
    (records were deleted before they were read), beyond (the topic was created anew), held (behind an open
    transaction), unread (the record could not be read in time).
    """
    from infra.kafka import topics  # noqa: PLC0415 - the Kafka client costs every other command its import

    known = topics.installed_groups()
    if wrong := set(group or ()) - known.keys():
        typer.echo(f"No such group: {', '.join(sorted(wrong))}; there are: {', '.join(known)}", err=True)
        raise typer.Exit(2)
    chosen = {name: read for name, read in known.items() if not group or name in group}
    with _reader(chosen) as reader:
        show = _json(chosen, watch, only_totals) if as_json else _screen(chosen, watch, only_totals)
        with show as take:
            for rows in _readings(reader, watch=watch):
                take(rows)


@contextmanager
def _reader(groups: dict[str, list[str]]) -> Iterator[LagReader]:
    from infra.kafka.lag import LagReader  # noqa: PLC0415 - see above

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
        time.sleep(_EVERY_S)
        yield reader.read()


@contextmanager
def _json(groups: dict[str, list[str]], watch: bool, only_totals: bool) -> Iterator[Take]:
    def take(rows: list[PartitionLag]) -> None:
        totals = {name: asdict(total) for name, total in _totals(rows, groups).items()}
        print(
            json.dumps(totals if only_totals else [asdict(row) for row in rows], indent=None if watch else 1),
            flush=True,
        )

    yield take


@contextmanager
def _screen(groups: dict[str, list[str]], watch: bool, only_totals: bool) -> Iterator[Take]:
    from rich.console import Console  # noqa: PLC0415 - not needed for JSON
    from rich.live import Live  # noqa: PLC0415

    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDE)  # into a file or a pipe: whole names

    def table(rows: list[PartitionLag]) -> Table:
        return _table([] if only_totals else rows, _totals(rows, groups))

    if not watch:
        yield lambda rows: console.print(table(rows))
        return
    with Live(console=console, auto_refresh=False) as live:
        yield lambda rows: live.update(table(rows), refresh=True)


def _totals(rows: list[PartitionLag], groups: dict[str, list[str]]) -> dict[str, Lag]:
    from infra.kafka.lag import totals  # noqa: PLC0415 - see above

    return totals(rows, groups)


def _table(rows: list[PartitionLag], totals: dict[str, Lag]) -> Table:
    """Return a total line a group, and below it the partitions that are not at their end."""
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
