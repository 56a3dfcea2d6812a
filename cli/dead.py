"""``dead list`` and ``dead show``: the dead letters in ``leads.dead``."""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.clock import to_datetime
from infra.errors import DependencyUnavailable
from infra.settings import Settings

if TYPE_CHECKING:
    from confluent_kafka import Message

_TIMEOUT_S = 10.0
_SILENT_S = 30.0
_MAX_DIGITS = 19

_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter; ``topic``, ``partition`` and ``offset`` are the coordinates of the original record."""

    topic: str
    partition: int
    offset: int
    stage: str
    reason: str
    detail: str
    exception: str
    at: str
    tenant: str
    event_id: str
    sender: str
    dead_partition: int
    dead_offset: int
    size: int


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="List and show dead letters: records that could not be processed.")
    group.command("list")(list_)
    group.command("show")(show)
    app.add_typer(group, name="dead")


def list_(
    *,
    reason: Annotated[str, typer.Option(help="List the dead letters with this reason one by one.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="With --reason: list at most this many, the newest.")] = 50,
    as_json: _Json = False,
) -> None:
    """Count the dead letters by reason, stage and sender."""
    letters = [_letter(message) for message in _read(Settings.load())]
    if reason:
        chosen = sorted((each for each in letters if each.reason == reason), key=lambda each: each.at)[-limit:]
        _print([asdict(each) for each in chosen], as_json=as_json)
        return
    grouped: dict[tuple[str, str, str], list[Letter]] = defaultdict(list)
    for each in letters:
        grouped[each.reason, each.stage, each.sender].append(each)
    summary = []
    for (code, stage, sender), members in sorted(grouped.items(), key=lambda item: -len(item[1])):
        newest = max(members, key=lambda each: each.at)
        example = f"{newest.topic} {newest.partition} {newest.offset}"
        row = {"reason": code, "stage": stage, "sender": sender, "count": len(members)}
        summary.append(row | {"newest": newest.at, "example": example})
    _print(summary, as_json=as_json)


def show(
    topic: Annotated[str, typer.Argument(help="Topic of the original record, or leads.dead.")],
    partition: Annotated[int, typer.Argument(help="Partition in that topic.")],
    offset: Annotated[int, typer.Argument(help="Offset in that partition.")],
    *,
    show_bytes: Annotated[
        bool, typer.Option("--bytes", help="Write only the value of the record, which may be personal data.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Show one dead letter: its origin, reason, detail and the names of its other headers."""
    coordinates = (topic, partition, offset)
    for message in _read(Settings.load()):
        letter = _letter(message)
        if coordinates not in {
            (letter.topic, letter.partition, letter.offset),
            ("leads.dead", letter.dead_partition, letter.dead_offset),
        }:
            continue
        if show_bytes:
            sys.stdout.buffer.write(message.value() or b"")
            sys.stdout.flush()
            return
        own = [name for name, _ in message.headers() or [] if not name.startswith("leadstream.")]
        _print([asdict(letter) | {"own_headers": own}], as_json=as_json, as_list=True)
        return
    typer.echo(f"No dead letter for {topic} {partition} {offset}. List them with `leadstream dead list`.", err=True)
    raise typer.Exit(1)


def _read(settings: Settings) -> Iterator[Message]:
    """Yield the current records of ``leads.dead``. Joins no consumer group and commits nothing."""
    from confluent_kafka import KafkaException, TopicPartition  # noqa: PLC0415 - only these commands need it

    from infra.kafka.client import metadata, reader  # noqa: PLC0415
    from infra.kafka.dead_letters import TOPIC  # noqa: PLC0415
    from infra.kafka.headers import make_readable  # noqa: PLC0415

    consumer = reader(settings, "leadstream-dead", {"auto.offset.reset": "earliest", "enable.partition.eof": True})
    try:
        left = set(metadata(consumer, TOPIC, timeout_s=_TIMEOUT_S).topics[TOPIC].partitions)
        consumer.assign([TopicPartition(TOPIC, p, 0) for p in left])
        last_message_at = time.monotonic()
        while left:
            messages = consumer.consume(1000, 0.2)
            for message in messages:
                if message.error() is None:
                    make_readable(message)
                    yield message
                else:  # end of the partition
                    left.discard(message.partition() or 0)
            last_message_at = time.monotonic() if messages else last_message_at
            if time.monotonic() - last_message_at > _SILENT_S:
                raise DependencyUnavailable("Kafka", f"no response for {_SILENT_S:.0f} s")
    except KafkaException as error:
        raise DependencyUnavailable("Kafka", error.args[0].name()) from error
    finally:
        consumer.close()


def _letter(message: Message) -> Letter:
    headers = {n.removeprefix("leadstream."): v for n, v in message.headers() or [] if n.startswith("leadstream.")}
    text = {name: (value or b"").decode(errors="replace") for name, value in headers.items()}
    at = to_datetime(_number(text.get("at", "")))
    return Letter(
        topic=text.get("topic", ""),
        partition=_number(text.get("partition", "")),
        offset=_number(text.get("offset", "")),
        stage=text.get("stage", ""),
        reason=text.get("reason", ""),
        detail=text.get("detail", ""),
        exception=text.get("exception", ""),
        at=at.isoformat(timespec="milliseconds"),
        tenant=text.get("tenant", ""),
        event_id=text.get("event_id", ""),
        sender=text.get("sender", ""),
        dead_partition=message.partition() or 0,
        dead_offset=message.offset() or 0,
        size=len(message.value() or b""),
    )


def _number(text: str) -> int:
    """Return a number below 2^62, or 0: a record may have forged headers."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < _MAX_DIGITS else 0


def _print(rows: list[dict[str, Any]], *, as_json: bool, as_list: bool = False) -> None:
    """Print ``rows`` as a table; with ``as_list`` print the only row with one line per column."""
    if as_json:
        print(json.dumps(rows[0] if as_list else rows, indent=1))
        return
    from rich.console import Console  # noqa: PLC0415 - not needed for JSON
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, show_header=not as_list)
    if as_list:
        for name, value in rows[0].items():
            table.add_row(name, str(value))
    elif rows:
        for name in rows[0]:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*map(str, row.values()))
    Console().print(table if rows else "No dead letters.", markup=False)
