"""The topics on the broker: :func:`diff` compares them with ``infra/kafka/topics.toml``, :func:`apply` corrects them.

Guarantees: ``apply`` creates what is missing, grows partitions and alters the settings that the file names; it never
shrinks, never deletes and leaves settings that the file does not name alone. Run twice, or by two processes at the same
time, it ends in the same state. When it returns, the broker's metadata shows every topic with a leader per partition.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourceType,
)

from infra.errors import DependencyUnavailable
from infra.kafka.client import admin as admin_client
from infra.kafka.client import metadata
from infra.kafka.topics import Topic, TopicsError, load_topics
from infra.kafka_settings import KafkaSettings

PREFIX = "leads."
_ASK_S = 10.0
_SHOW_S = 20.0
_LOOK_AGAIN_S = 0.05
_UNAVAILABLE = (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT, KafkaError._RESOLVE)  # noqa: SLF001 - librdkafka's own names


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference between file and broker.

    ``what`` is ``missing``, ``partitions`` (fewer than wanted), ``config``, ``shrink`` (more partitions than wanted:
    apply leaves them, shrinking would lose records and order) or ``unknown`` (on the broker, not in the file).
    """

    topic: str
    what: str
    setting: str = ""
    wanted: str = ""
    actual: str = ""

    @property
    def correctable(self) -> bool:
        """Whether :func:`apply` corrects it."""
        return self.what in {"missing", "partitions", "config"}


def diff(settings: KafkaSettings, topics: Mapping[str, Topic] | None = None) -> list[Difference]:
    """Compare the broker with ``topics`` (the file's); an empty list means that they agree.

    Raises:
        DependencyUnavailable: Kafka is unavailable, or refuses the login.

    """
    return _compare(admin_client(settings, "topics"), load_topics() if topics is None else topics)


def apply(settings: KafkaSettings, topics: Mapping[str, Topic] | None = None) -> list[Difference]:
    """Make the broker agree with ``topics`` (the file's) and return the differences that were found, corrected or not.

    Raises:
        DependencyUnavailable: Kafka is unavailable; what was done so far stays, call again.
        TopicsError: the broker refuses some of it (not allowed, no such setting, too few brokers).

    """
    wanted = load_topics() if topics is None else topics
    admin = admin_client(settings, "topics")
    found = _compare(admin, wanted)
    _create(admin, [wanted[d.topic] for d in found if d.what == "missing"])
    _grow(admin, [wanted[d.topic] for d in found if d.what == "partitions"])
    _alter(admin, [d for d in found if d.what == "config"])
    _await_leaders(admin, wanted)
    # Another process with an older or newer file may have created a topic after we compared.
    if any(d.what == "missing" for d in found):
        _alter(admin, [d for d in _compare(admin, wanted) if d.what == "config"])
    return found


def _compare(admin: AdminClient, wanted: Mapping[str, Topic]) -> list[Difference]:
    there = {name: len(meta.partitions) for name, meta in _metadata(admin).items() if name.startswith(PREFIX)}
    settings = _settings(admin, [name for name in wanted if name in there])
    found: list[Difference] = []
    for name, topic in wanted.items():
        if name not in there:
            found.append(Difference(name, "missing", wanted=f"{topic.partitions} partitions"))
            continue
        if there[name] != topic.partitions:
            what = "partitions" if there[name] < topic.partitions else "shrink"
            found.append(Difference(name, what, "partitions", str(topic.partitions), str(there[name])))
        found += [
            Difference(name, "config", setting, value, settings[name].get(setting, ""))
            for setting, value in topic.config.items()
            if settings[name].get(setting) != value
        ]
    return found + [Difference(name, "unknown") for name in sorted(there.keys() - wanted.keys())]


def _metadata(admin: AdminClient) -> dict[str, Any]:
    try:
        shown: dict[str, Any] = metadata(admin, timeout_s=_ASK_S).topics
    except KafkaException as error:
        raise _classified(error, "cluster") from error
    return shown


def _settings(admin: AdminClient, names: Sequence[str]) -> dict[str, dict[str, str]]:
    if not names:
        return {}
    asked = admin.describe_configs([ConfigResource(ResourceType.TOPIC, n) for n in names], request_timeout=_ASK_S)
    try:
        return {r.name: {k: entry.value for k, entry in f.result().items()} for r, f in asked.items()}
    except KafkaException as error:
        raise _classified(error, "settings") from error


def _create(admin: AdminClient, topics: Sequence[Topic]) -> None:
    if topics:
        new = [NewTopic(t.name, t.partitions, -1, config=dict(t.config)) for t in topics]
        _await_all(admin.create_topics(new, request_timeout=_ASK_S), KafkaError.TOPIC_ALREADY_EXISTS)


def _grow(admin: AdminClient, topics: Sequence[Topic]) -> None:
    if topics:
        new = [NewPartitions(t.name, t.partitions) for t in topics]
        # Refused as invalid when another process has just grown it.
        _await_all(admin.create_partitions(new, request_timeout=_ASK_S), KafkaError.INVALID_PARTITIONS)


def _alter(admin: AdminClient, differences: Sequence[Difference]) -> None:
    by_topic: dict[str, list[ConfigEntry]] = {}
    for d in differences:
        entry = ConfigEntry(d.setting, d.wanted, incremental_operation=AlterConfigOpType.SET)
        by_topic.setdefault(d.topic, []).append(entry)
    if by_topic:
        resources = [
            ConfigResource(ResourceType.TOPIC, name, incremental_configs=entries) for name, entries in by_topic.items()
        ]
        asked = admin.incremental_alter_configs(resources, request_timeout=_ASK_S)
        _await_all({resource.name: future for resource, future in asked.items()})


def _await_all(asked: Mapping[str, Future[Any]], done_already: int | None = None) -> None:
    wrong: list[str] = []
    for name, future in asked.items():
        try:
            future.result()
        except KafkaException as error:
            if error.args[0].code() != done_already:
                classified = _classified(error, name)
                if isinstance(classified, DependencyUnavailable):
                    raise classified from error
                wrong.append(str(classified))
    if wrong:
        raise TopicsError("\n".join(wrong))


def _await_leaders(admin: AdminClient, wanted: Mapping[str, Topic]) -> None:
    deadline = time.monotonic() + _SHOW_S
    while missing := _without_leader(_metadata(admin), wanted):
        if time.monotonic() > deadline:
            raise DependencyUnavailable("Kafka", f"no leader yet for {', '.join(missing)}")
        time.sleep(_LOOK_AGAIN_S)


def _without_leader(shown: Mapping[str, Any], wanted: Mapping[str, Topic]) -> list[str]:
    def has_leaders(topic: Topic) -> bool:
        meta = shown.get(topic.name)
        if meta is None or meta.error is not None or len(meta.partitions) < topic.partitions:
            return False
        return all(p.leader >= 0 for p in meta.partitions.values())

    return [name for name, topic in wanted.items() if not has_leaders(topic)]


def _classified(error: KafkaException, subject: str) -> Exception:
    cause: KafkaError = error.args[0]
    unavailable = cause.code() in _UNAVAILABLE
    return DependencyUnavailable("Kafka", cause.name()) if unavailable else TopicsError(f"{subject}: {cause.str()}")
