"""``dead list`` and ``dead show``: the records on ``leads.dead``, why they are there and where they came from."""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.errors import DependencyAway
from infra.settings import Settings

if TYPE_CHECKING:
    from confluent_kafka import Message

_TIMEOUT_S = 10.0
_SILENT_S = 30.0


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter; ``topic``, ``partition``, ``offset`` are where the record came from."""

    topic: str
    partition: int
    offset: int
    stage: str
    reason: str
    detail: str
    exception: str
    at: str
    dead_partition: int
    dead_offset: int
    size: int


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="Records that could not be accepted.")
    group.command("list")(list_)
    group.command("show")(show)
    app.add_typer(group, name="dead")


def list_(
    *,
    reason: Annotated[str, typer.Option(help="List every dead letter with this reason.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="List at most this many, the newest ones.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Count the dead letters by reason and stage, or list those with one reason."""
    letters = [_letter(message) for message in _read(Settings.load())]
    if reason:
        chosen = sorted((each for each in letters if each.reason == reason), key=lambda each: each.at)[-limit:]
        _print([asdict(each) for each in chosen], as_json=as_json)
        return
    grouped: dict[tuple[str, str], list[Letter]] = defaultdict(list)
    for each in letters:
        grouped[each.reason, each.stage].append(each)
    summed = []
    for (why, stage), those in sorted(grouped.items(), key=lambda item: -len(item[1])):
        newest = max(those, key=lambda each: each.at)
        where = f"{newest.topic} {newest.partition} {newest.offset}"
        summed.append({"reason": why, "stage": stage, "count": len(those), "newest": newest.at, "example": where})
    _print(summed, as_json=as_json)


def show(
    topic: Annotated[str, typer.Argument(help="Topic that the record came from, or leads.dead.")],
    partition: int,
    offset: int,
    *,
    show_bytes: Annotated[bool, typer.Option("--bytes", help="Write the record's value to standard output.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show one dead letter: its source, reason and headers; with --bytes its value, which may be personal data."""
    for message in _read(Settings.load()):
        letter = _letter(message)
        here = (topic, partition, offset)
        if here not in {
            (letter.topic, letter.partition, letter.offset),
            ("leads.dead", letter.dead_partition, letter.dead_offset),
        }:
            continue
        if show_bytes:
            sys.stdout.buffer.write(message.value() or b"")
            sys.stdout.flush()
            return
        own = [name for name, _ in message.headers() or [] if not name.startswith("leadstream.")]
        _print([asdict(letter) | {"own_headers": own}], as_json=as_json, upright=True)
        return
    typer.echo(
        f"There is no dead letter {topic} {partition} {offset}; `leadstream dead list` shows those there are.", err=True
    )
    raise typer.Exit(1)


def _read(settings: Settings) -> Iterator[Message]:
    """Yield what ``leads.dead`` holds now, by a consumer that joins no group."""
    from confluent_kafka import KafkaException, TopicPartition  # noqa: PLC0415 - only these commands need it

    from infra.kafka.client import metadata, reader  # noqa: PLC0415
    from infra.kafka.dead_letters import TOPIC  # noqa: PLC0415

    consumer = reader(settings, "leadstream-dead", {"auto.offset.reset": "earliest", "enable.partition.eof": True})
    try:
        unfinished = set(metadata(consumer, TOPIC, timeout_s=_TIMEOUT_S).topics[TOPIC].partitions)
        consumer.assign([TopicPartition(TOPIC, p, 0) for p in unfinished])
        answered_at = time.monotonic()
        while unfinished:
            messages = consumer.consume(1000, 0.2)
            for message in messages:
                if message.error() is None:
                    yield message
                else:  # the end of a partition
                    unfinished.discard(message.partition() or 0)
            answered_at = time.monotonic() if messages else answered_at
            if time.monotonic() - answered_at > _SILENT_S:
                raise DependencyAway("Kafka", f"no answer for {_SILENT_S:.0f} s")
    except KafkaException as error:
        raise DependencyAway("Kafka", error.args[0].name()) from error
    finally:
        consumer.close()


def _letter(message: Message) -> Letter:
    own = {n.removeprefix("leadstream."): v for n, v in message.headers() or [] if n.startswith("leadstream.")}
    text = {name: (value or b"").decode(errors="replace") for name, value in own.items()}
    at = datetime.fromtimestamp(_number(text.get("at", "")) / 1_000_000, UTC)
    return Letter(
        topic=text.get("topic", ""),
        partition=_number(text.get("partition", "")),
        offset=_number(text.get("offset", "")),
        stage=text.get("stage", ""),
        reason=text.get("reason", ""),
        detail=text.get("detail", ""),
        exception=text.get("exception", ""),
        at=at.isoformat(timespec="milliseconds"),
        dead_partition=message.partition() or 0,
        dead_offset=message.offset() or 0,
        size=len(message.value() or b""),
    )


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def _print(rows: list[dict[str, Any]], *, as_json: bool, upright: bool = False) -> None:
    if as_json:
        print(json.dumps(rows[0] if upright else rows, indent=1))
        return
    from rich.console import Console  # noqa: PLC0415 - not needed for JSON
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, show_header=not upright)
    if upright:
        for name, value in rows[0].items():
            table.add_row(name, str(value))
    elif rows:
        for name in rows[0]:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*map(str, row.values()))
    Console().print(table if rows else "No dead letters.", markup=False)
