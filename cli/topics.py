"""``topics apply|diff|secure|grant``: the topics on the broker and those of ``infra/kafka/topics.toml``; its users."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from infra.settings import Settings

if TYPE_CHECKING:
    from operations.broker_topics import Difference

Result = TypeVar("Result")
_JSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="Compare and apply the topics of infra/kafka/topics.toml.")
    group.command("apply")(apply)
    group.command("diff")(diff)
    group.command("secure")(secure)
    group.command("grant")(grant)
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


def secure(*, as_json: _JSON = False) -> None:
    """Create the users of LEADSTREAM_KAFKA_PASSWORDS on the broker, with their ACLs.

    Needs a connection that may do so, and a broker with an authorizer. docs/guides/security.md shows the settings.
    """
    from operations import broker_access  # noqa: PLC0415 - see above

    settings = Settings.load()
    text = "" if settings.kafka_passwords is None else settings.kafka_passwords.get_secret_value()
    pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
    if not pairs or not all(user.strip() and password for user, _, password in pairs):
        typer.echo("LEADSTREAM_KAFKA_PASSWORDS: must be user=password, separated by commas", err=True)
        raise typer.Exit(2)
    passwords = {user.strip(): password for user, _, password in pairs}
    _permitted(lambda: broker_access.secure(settings, passwords))
    print(json.dumps({"users": [*passwords]}) if as_json else f"Users with their ACLs: {', '.join(passwords)}.")


def grant(
    tenant: Annotated[str, typer.Argument(help="Tenant whose own producers write to leads.received.TENANT.")],
    *,
    as_json: _JSON = False,
) -> None:
    """Create the broker's user of a tenant, or give it a new password, and print it once.

    It may write to the tenant's topic and to nothing else. Needs a broker with an authorizer.
    """
    from infra.kafka.received import is_tenant  # noqa: PLC0415 - see above
    from operations import broker_access  # noqa: PLC0415

    if not is_tenant(tenant):
        typer.echo(f"{tenant!r} is not a tenant: lower-case letters, digits, _ and -, at most 63", err=True)
        raise typer.Exit(2)
    user, password = _permitted(lambda: broker_access.grant(Settings.load(), tenant))
    print(json.dumps({"user": user, "password": password}) if as_json else f"{user} {password}")


def _permitted(change: Callable[[], Result]) -> Result:
    from infra.kafka.topics import TopicsError  # noqa: PLC0415 - see above

    try:
        return change()
    except TopicsError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


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
