"""The number of brokers of a state folder, and what the brokers of a cluster share."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.settings import Settings
from local.brokers import Cluster, choose_count, cluster_id, controller, names_of
from local.plan import PARTS, make_plan
from local.process_spec import StackError


def created_with(home: Path, count: int) -> Path:
    """Leave in ``home`` what the first start of ``count`` brokers leaves."""
    cluster_id(home, count)
    for name in names_of(count):
        (home / name).mkdir()
        (home / name / "meta.properties").touch()
    return home


def properties(cluster: Cluster, name: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in cluster.properties(name).splitlines())


def cluster(home: Path, count: int, *, flush: bool = False) -> Cluster:
    names = names_of(count)
    ports = {name: 9001 + at for at, name in enumerate([*names, *map(controller, names)])}
    return Cluster(home, names, ports, cluster_id(home, count), flush)


def test_a_new_folder_has_the_wanted_number_or_one(tmp_path: Path) -> None:
    assert [choose_count(tmp_path, wanted) for wanted in (None, 1, 3)] == [1, 1, 3]


@pytest.mark.parametrize(("created", "wanted"), [(1, 3), (3, 1)])
def test_a_folder_keeps_its_number(tmp_path: Path, created: int, wanted: int) -> None:
    created_with(tmp_path, created)
    assert choose_count(tmp_path, None) == choose_count(tmp_path, created) == created
    with pytest.raises(StackError, match=rf"created with {created} Kafka brokers? .*start it with --brokers {created}"):
        choose_count(tmp_path, wanted)


def test_a_folder_without_the_file_has_one_broker(tmp_path: Path) -> None:
    created_with(tmp_path, 1)
    (tmp_path / "kafka.json").unlink()
    assert choose_count(tmp_path, None) == 1
    with pytest.raises(StackError, match="created with 1 Kafka broker"):
        choose_count(tmp_path, 3)


@pytest.mark.parametrize("wanted", [0, 2, 4, -3])
def test_other_numbers_are_refused(tmp_path: Path, wanted: int) -> None:
    with pytest.raises(StackError, match="1 broker or 3"):
        choose_count(tmp_path, wanted)


def test_a_broker_that_lost_its_disk_gets_the_id_of_the_cluster(tmp_path: Path) -> None:
    first = cluster_id(created_with(tmp_path, 3), 3)
    (tmp_path / "kafka-2" / "meta.properties").unlink()
    assert (choose_count(tmp_path, None), cluster_id(tmp_path, 3)) == (3, first)


def test_the_brokers_of_a_cluster_have_own_places_and_the_same_voters(tmp_path: Path) -> None:
    three = cluster(tmp_path, 3)
    found = [properties(three, name) for name in three.names]
    for own in ("node.id", "listeners", "advertised.listeners", "log.dirs"):
        assert len({each[own] for each in found}) == 3, own
    assert {each["controller.quorum.voters"] for each in found} == {
        "1@127.0.0.1:9004,2@127.0.0.1:9005,3@127.0.0.1:9006"
    }
    assert three.bootstrap == "127.0.0.1:9001,127.0.0.1:9002,127.0.0.1:9003"


@pytest.mark.parametrize(("count", "in_sync"), [(1, "1"), (3, "2")])
def test_a_record_is_acknowledged_by_the_majority(tmp_path: Path, count: int, in_sync: str) -> None:
    found = properties(cluster(tmp_path, count), "kafka")
    assert {value for key, value in found.items() if "replication.factor" in key} == {str(count)}
    assert {value for key, value in found.items() if key.endswith(("min.isr", "insync.replicas"))} == {in_sync}


def test_a_broker_flushes_by_setting(tmp_path: Path) -> None:
    assert "log.flush.interval.messages" not in properties(cluster(tmp_path, 1), "kafka")
    assert properties(cluster(tmp_path, 1, flush=True), "kafka")["log.flush.interval.messages"] == "1"


def test_the_plan_has_a_part_for_each_broker_and_all_addresses(tmp_path: Path) -> None:
    settings = Settings.load({"LEADSTREAM_HOME": str(tmp_path)})
    plan = make_plan(tmp_path, settings, parts=PARTS, pipeline=False, without=(), brokers=3)
    assert [name for name in plan.parts if name.startswith("kafka")] == ["kafka", "kafka-2", "kafka-3"]
    assert len(plan.environment["LEADSTREAM_KAFKA_BOOTSTRAP"].split(",")) == 3
    assert plan.addresses["kafka"] == {"bootstrap": plan.environment["LEADSTREAM_KAFKA_BOOTSTRAP"]}
