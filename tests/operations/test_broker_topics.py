"""Topics as code with a real broker: created, corrected, never shrunk, also by concurrent processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka.admin import ConfigResource, NewTopic, ResourceType

from infra import processes
from infra.errors import DependencyUnavailable
from infra.kafka import client
from infra.kafka.topics import Topic, TopicsError, groups, load_topics
from infra.kafka_settings import KafkaSettings
from infra.settings import Settings
from operations.broker_topics import Difference, apply, diff

CONFIG = {"cleanup.policy": "delete", "retention.ms": "3600000", "max.message.bytes": "1048576"}


@pytest.fixture
def settings(stack: Any) -> Settings:
    found: Settings = stack.settings
    return found


@pytest.fixture
def wanted(settings: Settings) -> Iterator[Callable[..., dict[str, Topic]]]:
    mark = uuid4().hex[:8]
    made: set[str] = set()

    def make(*names: str, partitions: int = 2, **config: str) -> dict[str, Topic]:
        full = [f"leads.test-{mark}-{name}" for name in names]
        made.update(full)
        settings = CONFIG | {k.replace("_", "."): v for k, v in config.items()}
        return {
            n: Topic(name=n, doc="made by a test", key="none", partitions=partitions, config=settings) for n in full
        }

    yield make
    there = client.admin(settings, "test")
    if left := sorted(made & there.list_topics(timeout=10).topics.keys()):
        for future in there.delete_topics(left).values():
            future.result()


def mine(found: list[Difference], topics: dict[str, Topic]) -> list[Difference]:
    return [d for d in found if d.topic in topics]


def shown(settings: Settings, name: str) -> tuple[int, dict[str, str]]:
    admin = client.admin(settings, "test")
    resource = ConfigResource(ResourceType.TOPIC, name)
    entries = admin.describe_configs([resource])[resource].result()
    return len(admin.list_topics(name, 10).topics[name].partitions), {k: e.value for k, e in entries.items()}


@pytest.mark.integration
def test_missing_topics_are_created_and_a_second_apply_finds_no_difference(settings: Settings, wanted: Any) -> None:
    topics = wanted("a", "b", partitions=3)
    assert {d.what for d in mine(diff(settings, topics), topics)} == {"missing"}
    assert {d.topic for d in mine(apply(settings, topics), topics)} == set(topics)
    for name in topics:
        partitions, config = shown(settings, name)
        assert partitions == 3
        assert CONFIG.items() <= config.items()
    assert mine(diff(settings, topics), topics) == []
    assert mine(apply(settings, topics), topics) == []


@pytest.mark.integration
def test_partitions_grow_and_settings_change(settings: Settings, wanted: Any) -> None:
    apply(settings, wanted("a", partitions=1))
    grown = wanted("a", partitions=4, retention_ms="7200000", cleanup_policy="compact,delete")
    found = mine(diff(settings, grown), grown)
    assert {(d.setting, d.wanted, d.actual) for d in found} == {
        ("partitions", "4", "1"),
        ("retention.ms", "7200000", "3600000"),
        ("cleanup.policy", "compact,delete", "delete"),
    }
    apply(settings, grown)
    assert mine(diff(settings, grown), grown) == []


@pytest.mark.integration
def test_a_topic_with_too_many_partitions_is_reported_and_left(settings: Settings, wanted: Any) -> None:
    apply(settings, wanted("a", partitions=3))
    fewer = wanted("a", partitions=2)
    found = mine(apply(settings, fewer), fewer)
    assert [(d.what, d.correctable) for d in found] == [("shrink", False)]
    assert shown(settings, next(iter(fewer)))[0] == 3


@pytest.mark.integration
def test_settings_that_the_file_does_not_name_are_left(settings: Settings, wanted: Any) -> None:
    topics = wanted("a")
    name = next(iter(topics))
    admin = client.admin(settings, "test")
    new = NewTopic(name, 2, 1, config={"segment.ms": "123456", "retention.ms": "1"})
    admin.create_topics([new])[name].result()
    apply(settings, topics)
    config = shown(settings, name)[1]
    assert (config["segment.ms"], config["retention.ms"]) == ("123456", "3600000")


@pytest.mark.integration
def test_min_insync_replicas_is_at_most_the_number_of_replicas(settings: Settings, wanted: Any) -> None:
    topics = wanted("a", min_insync_replicas="2")
    apply(settings, topics)
    assert shown(settings, next(iter(topics)))[1]["min.insync.replicas"] == "1"
    assert mine(diff(settings, topics), topics) == []


@pytest.mark.integration
def test_a_replication_that_the_brokers_cannot_have_is_refused_or_reported(settings: Settings, wanted: Any) -> None:
    three = settings.model_copy(update={"kafka_replication": 3})
    topics = wanted("a")
    with pytest.raises(TopicsError, match=next(iter(topics))):
        apply(three, topics)
    apply(settings, topics)
    found = mine(apply(three, topics), topics)
    assert [(d.what, d.wanted, d.actual, d.correctable) for d in found] == [("replicas", "3", "1", False)]


def test_no_topic_is_written_with_fewer_replicas_in_sync_than_the_file_has() -> None:
    for topic in load_topics().values():
        assert [topic.config_with(n)["min.insync.replicas"] for n in (1, 2, 3)] == ["1", "2", "2"], topic.name


@pytest.mark.integration
def test_an_unknown_topic_is_reported_and_left(settings: Settings, wanted: Any) -> None:
    stray = wanted("stray")
    apply(settings, stray)
    found = mine(apply(settings, wanted("a")), stray)
    assert [(d.what, d.correctable) for d in found] == [("unknown", False)]
    assert shown(settings, next(iter(stray)))[0] == 2


@pytest.mark.integration
def test_processes_that_apply_at_the_same_time_all_succeed(settings: Settings, wanted: Any) -> None:
    together = threading.Barrier(4)

    def one(topics: dict[str, Topic]) -> None:
        together.wait()
        apply(settings, topics)

    for partitions in (2, 5):
        topics = wanted("a", "b", "c", "d", partitions=partitions)
        with ThreadPoolExecutor(4) as pool:
            for future in [pool.submit(one, topics) for _ in range(4)]:
                future.result()
        assert mine(diff(settings, topics), topics) == []


@pytest.mark.integration
def test_a_topic_that_the_broker_rejects_is_named(settings: Settings, wanted: Any) -> None:
    topics = wanted("a", retention_ms="soon")
    with pytest.raises(TopicsError, match=next(iter(topics))):
        apply(settings, topics)


def test_an_unavailable_broker_is_reported() -> None:
    with pytest.raises(DependencyUnavailable, match="Kafka"):
        diff(KafkaSettings(kafka_bootstrap="127.0.0.1:1"))


def test_the_file_is_valid_and_every_consumer_in_it_is_a_process() -> None:
    topics = load_topics()
    read = groups(topics, processes.load_processes())
    assert topics["leads.received"].partitions == topics["leads.changed"].partitions == 8
    assert read["intake"] == ["leads.received"]
    assert read["sink-clickhouse"] == ["leads.changed", "leads.dead", "leads.outcomes"]
    assert read["crm-hubspot"] == ["leads.crm-hubspot"]
    assert set(read) == set(processes.load_processes()) - {"api", "maintenance"}


def test_a_new_crm_needs_no_entry(tmp_path: Path) -> None:
    folder = tmp_path / "sinks" / "crm"
    folder.mkdir(parents=True)
    for name in ("__init__", "reconciler"):
        (folder / f"{name}.py").touch()
    (folder / "zoho.py").write_text("\nclass Config(BaseModel):\n    token: str\n")
    topics = load_topics(root=tmp_path)
    assert [name for name in topics if name.startswith("leads.crm-")] == ["leads.crm-zoho"]
    assert groups(topics, ["crm-zoho", "crm-hubspot"]) == {"crm-zoho": ["leads.crm-zoho"]}


def test_the_error_of_an_invalid_file_names_every_invalid_entry(tmp_path: Path) -> None:
    file = tmp_path / "topics.toml"
    file.write_text(
        '["leads.a"]\ndoc = "a long enough text"\nkey = "none"\npartitions = 0\nconfig = {}\n'
        '["leads.b-*"]\ndoc = "a long enough text"\nkey = "none"\npartitions = 1\nconfig = {}\n'
    )
    with pytest.raises(TopicsError) as wrong:
        load_topics(file)
    assert "leads.a: partitions" in str(wrong.value)
    assert "leads.b-*: a name is" in str(wrong.value)
