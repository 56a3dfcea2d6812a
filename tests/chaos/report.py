"""A run as Markdown: what was done to the stack, how long it took to recover, and the books."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from statistics import median

from tests.chaos.run import Result


def markdown(result: Result) -> str:
    """Return the report."""
    ledger = result.ledger
    rate = ledger.acknowledged / ledger.seconds if ledger.seconds else 0
    sentences = (
        f'Seed {result.seed} (`make chaos ARGS="--seed {result.seed}"`).',
        f"{ledger.acknowledged:,} records were acknowledged in {ledger.seconds:,.0f} s ({rate:,.0f} a second):",
        f"{len(ledger.events):,} different events, {ledger.repeated:,} duplicates, {ledger.broken:,} malformed;",
        f"{ledger.by_http:,} by HTTP. {ledger.resent:,} were sent again because nothing acknowledged them.",
        f"All work was done {result.drained_s:,.0f} s after the last fault.",
    )
    lines = [
        f"# Chaos: {sum(result.kills.values())} kills over {ledger.acknowledged:,} records",
        "",
        " ".join(sentences),
        "",
        *_table(("process", "kills", "recovery, median s", "longest s"), _recoveries(result)),
        "",
        *_table(("fault", "when"), _faults(result)),
        "",
        *_table(("book", "result"), ((name, "; ".join(wrong) or "right") for name, wrong in result.books.items())),
        "",
        *_table(("count", ""), result.counts.items()),
    ]
    return "\n".join([*lines, ""])


def _recoveries(result: Result) -> Iterator[tuple[object, ...]]:
    for name, kills in sorted(result.kills.items()):
        times = result.recovery_s.get(name, [])
        yield name, kills, f"{median(times):.1f}" if times else "-", f"{max(times):.1f}" if times else "-"
    yield "all", sum(result.kills.values()), "", ""


def _faults(result: Result) -> Iterator[tuple[object, ...]]:
    yield from ((fault, "; ".join(times)) for fault, times in sorted(result.faults.items()))
    yield from ((fault, f"not done: {reason}") for fault, reason in sorted(result.skipped.items()))


def _table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        "|" + " --- |" * len(head),
        *(f"| {' | '.join(f'{cell:,}' if isinstance(cell, int) else str(cell) for cell in row)} |" for row in rows),
    ]
