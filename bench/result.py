"""The result of a benchmark, and its output as a table and as JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

LATEST = Path(__file__).with_name("latest.json")


@dataclass(frozen=True, slots=True)
class Result:
    """The medians of ``runs`` alternating runs of ``ours`` and ``reference``; ``wanted`` is the minimum ratio."""

    name: str
    ours: float
    reference: float
    ratio: float
    unit: str
    runs: int
    wanted: float
    note: str = ""


def compare(
    name: str,
    ours: Callable[[], float],
    reference: Callable[[], float],
    *,
    wanted: float,
    runs: int = 5,
    unit: str = "events/s",
    note: str = "",
) -> Result:
    """Run both alternately, ``runs`` times each after one warm-up, and compare their medians."""
    ours(), reference()
    pairs = [(ours(), reference()) for _ in range(runs)]
    mine, other = (statistics.median(column) for column in zip(*pairs, strict=True))
    return Result(name, round(mine, 1), round(other, 1), round(mine / other, 3), unit, runs, wanted, note)


def publish(results: Sequence[Result], *, write: bool) -> None:
    """Print the table; with ``write``, also write ``bench/latest.json``."""
    table = Table("what", "ours", "reference", "ratio", "wanted", "unit", "runs", box=None, pad_edge=False)
    for r in results:
        colour = "green" if r.ratio >= r.wanted else "red"
        table.add_row(
            r.name,
            f"{r.ours:,.0f}",
            f"{r.reference:,.0f}",
            f"[{colour}]{r.ratio:.2f}[/]",
            f"≥ {r.wanted}",
            r.unit,
            str(r.runs),
        )
    Console().print(table)
    if write:
        LATEST.write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n", "utf-8")
