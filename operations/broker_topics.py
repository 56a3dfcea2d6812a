"""The topics on the broker: :func:`diff` compares them with ``infra/kafka/topics.toml``, :func:`apply` corrects them.

Guarantees: ``apply`` creates missing topics, adds missing partitions and alters the settings that the file names. It
removes no topic or partition, and does not change settings that the file does not name. A repeated or concurrent run
ends in the same state. When it returns, the metadata of the broker shows a leader for every partition.
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
from infra.kafka.topics import IN_SYNC, Topic, TopicsError, load_topics
from infra.kafka_settings import KafkaSettings

PREFIX = "leads."
_REQUEST_S = 10.0
_LEADERS_S = 20.0
_POLL_S = 0.05
_UNAVAILABLE = (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT, KafkaError._RESOLVE)  # noqa: SLF001 - librdkafka's own names


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference between the file and the broker.

    ``what`` is ``missing``, ``partitions`` (fewer than in the file), ``config``, ``shrink`` (more partitions than in
    the file; not corrected, because Kafka cannot remove partitions), ``replicas`` (fewer than the setting; not
    corrected, because the new replicas have to be placed) or ``unknown`` (on the broker, not in the file).
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
    """Return the differences between the broker and ``topics`` (default: those of the file, without tenants').

    Raises:
        DependencyUnavailable: Kafka is unavailable, or refuses the login.

    """
    wanted = load_topics() if topics is None else topics
    return _compare(admin_client(settings, "topics"), wanted, settings.kafka_replication)


def apply(settings: KafkaSettings, topics: Mapping[str, Topic] | None = None) -> list[Difference]:
    """Apply ``topics`` to the broker; return all differences found, corrected or not.

    Default: those of the file, without tenants'.

    Raises:
        DependencyUnavailable: Kafka is unavailable; some changes may be applied. Call again.
        TopicsError: the broker rejects a change (not authorized, no such setting, too few brokers).

    """
    wanted = load_topics() if topics is None else topics
    admin = admin_client(settings, "topics")
    replicas = settings.kafka_replication
    found = _compare(admin, wanted, replicas)
    _create(admin, [wanted[d.topic] for d in found if d.what == "missing"], replicas)
    _grow(admin, [wanted[d.topic] for d in found if d.what == "partitions"])
    _alter(admin, [d for d in found if d.what == "config"])
    _await_leaders(admin, wanted)
    # A new topic has no min.insync.replicas yet, because the broker decided the number of its replicas. And another
    # process with another version of the file may have created a topic after the comparison.
    if any(d.what == "missing" for d in found):
        _alter(admin, [d for d in _compare(admin, wanted, replicas) if d.what == "config"])
    return found


def _compare(admin: AdminClient, wanted: Mapping[str, Topic], replication: int) -> list[Difference]:
    shown = {name: meta.partitions for name, meta in _metadata(admin).items() if name.startswith(PREFIX)}
    there = {name: len(partitions) for name, partitions in shown.items()}
    replicas = {name: min(len(p.replicas) for p in partitions.values()) for name, partitions in shown.items()}
    settings = _settings(admin, [name for name in wanted if name in there])
    found: list[Difference] = []
    for name, topic in wanted.items():
        if name not in there:
            found.append(Difference(name, "missing", wanted=f"{topic.partitions} partitions"))
            continue
        if there[name] != topic.partitions:
            what = "partitions" if there[name] < topic.partitions else "shrink"
            found.append(Difference(name, what, "partitions", str(topic.partitions), str(there[name])))
        if replicas[name] < replication:
            found.append(Difference(name, "replicas", "replicas", str(replication), str(replicas[name])))
        found += [
            Difference(name, "config", setting, value, settings[name].get(setting, ""))
            for setting, value in topic.config_with(replicas[name]).items()
            if settings[name].get(setting) != value
        ]
    return found + [Difference(name, "unknown") for name in sorted(there.keys() - wanted.keys())]


def _metadata(admin: AdminClient) -> dict[str, Any]:
    try:
        shown: dict[str, Any] = metadata(admin, timeout_s=_REQUEST_S).topics
    except KafkaException as error:
        raise _classified(error, "cluster") from error
    return shown


def _settings(admin: AdminClient, names: Sequence[str]) -> dict[str, dict[str, str]]:
    if not names:
        return {}
    futures = admin.describe_configs([ConfigResource(ResourceType.TOPIC, n) for n in names], request_timeout=_REQUEST_S)
    try:
        return {r.name: {k: entry.value for k, entry in f.result().items()} for r, f in futures.items()}
    except KafkaException as error:
        raise _classified(error, "settings") from error


def _create(admin: AdminClient, topics: Sequence[Topic], replication: int) -> None:
    if topics:
        new = [
            NewTopic(
                t.name, t.partitions, replication or -1, config={k: v for k, v in t.config.items() if k != IN_SYNC}
            )
            for t in topics
        ]
        _await_all(admin.create_topics(new, request_timeout=_REQUEST_S), KafkaError.TOPIC_ALREADY_EXISTS)


def _grow(admin: AdminClient, topics: Sequence[Topic]) -> None:
    if topics:
        new = [NewPartitions(t.name, t.partitions) for t in topics]
        # The error means that another process has just added the partitions.
        _await_all(admin.create_partitions(new, request_timeout=_REQUEST_S), KafkaError.INVALID_PARTITIONS)


def _alter(admin: AdminClient, differences: Sequence[Difference]) -> None:
    by_topic: dict[str, list[ConfigEntry]] = {}
    for d in differences:
        entry = ConfigEntry(d.setting, d.wanted, incremental_operation=AlterConfigOpType.SET)
        by_topic.setdefault(d.topic, []).append(entry)
    if by_topic:
        resources = [
            ConfigResource(ResourceType.TOPIC, name, incremental_configs=entries) for name, entries in by_topic.items()
        ]
        futures = admin.incremental_alter_configs(resources, request_timeout=_REQUEST_S)
        _await_all({resource.name: future for resource, future in futures.items()})


def _await_all(futures: Mapping[str, Future[Any]], ignored_error: int | None = None) -> None:
    wrong: list[str] = []
    for name, future in futures.items():
        try:
            future.result()
        except KafkaException as error:
            if error.args[0].code() != ignored_error:
                classified = _classified(error, name)
                if isinstance(classified, DependencyUnavailable):
                    raise classified from error
                wrong.append(str(classified))
    if wrong:
        raise TopicsError("\n".join(wrong))


def _await_leaders(admin: AdminClient, wanted: Mapping[str, Topic]) -> None:
    deadline = time.monotonic() + _LEADERS_S
    while missing := _without_leader(_metadata(admin), wanted):
        if time.monotonic() > deadline:
            raise DependencyUnavailable("Kafka", f"no leader yet for {', '.join(missing)}")
        time.sleep(_POLL_S)


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
