"""``topics apply`` and ``topics diff``: the topics on the broker and those of ``infra/kafka/topics.toml``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from infra.settings import Settings

if TYPE_CHECKING:
    from operations.broker_topics import Difference

_JSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="Compare and apply the topics of infra/kafka/topics.toml.")
    group.command("apply")(apply)
    group.command("diff")(diff)
    app.add_typer(group, name="topics")


def apply(*, as_json: _JSON = False) -> None:
    """Create and alter topics so that the broker has the topics and settings of infra/kafka/topics.toml.

    Exit code 1 when a topic has more partitions than in the file, which Kafka cannot correct, or too few replicas.
    """
    from infra.kafka import received, topics  # noqa: PLC0415 - the Kafka client costs every other command its import
    from operations import broker_topics  # noqa: PLC0415

    try:
        settings = Settings.load()
        found = broker_topics.apply(settings, topics.load_topics(tenants=received.tenant_names(settings.tenants_dir)))
    except topics.TopicsError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    if as_json:
        print(json.dumps([asdict(d) | {"corrected": d.correctable} for d in found], indent=1))
    for d in () if as_json else found:
        print(f"{'corrected  ' if d.correctable else 'unchanged  '}{describe(d)}")
    if not found and not as_json:
        print("Nothing to do.")
    if any(d.what in {"shrink", "replicas"} for d in found):
        raise typer.Exit(1)


def diff(*, as_json: _JSON = False) -> None:
    """Show the differences between the broker and infra/kafka/topics.toml, without changing anything.

    Exit code 1 when there is a difference.
    """
    from infra.kafka import received, topics  # noqa: PLC0415 - see above
    from operations import broker_topics  # noqa: PLC0415

    settings = Settings.load()
    found = broker_topics.diff(settings, topics.load_topics(tenants=received.tenant_names(settings.tenants_dir)))
    if as_json:
        print(json.dumps([asdict(d) for d in found], indent=1))
    for d in () if as_json else found:
        print(describe(d))
    if found:
        raise typer.Exit(1)
    if not as_json:
        print("No difference.")


def describe(d: Difference) -> str:
    """Return a description of one difference between the broker and the file."""
    counts = f"has {d.actual} partitions, must have {d.wanted}"
    return {
        "missing": f"{d.topic}: does not exist, must have {d.wanted}",
        "partitions": f"{d.topic}: {counts} (new records of a key may go to another partition)",
        "config": f"{d.topic}: {d.setting} is {d.actual or 'not set'}, must be {d.wanted}",
        "shrink": f"{d.topic}: {counts}; Kafka cannot remove partitions: change the file",
        "replicas": f"{d.topic}: has {d.actual} replicas, must have {d.wanted}; place them with "
        "kafka-reassign-partitions.sh, then run `leadstream topics apply`",
        "unknown": f"{d.topic}: is not in the file, or its tenant has no file: delete the topic or add the entry",
    }[d.what]
