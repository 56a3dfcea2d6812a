"""The plan of a stack: ports, settings, simulators."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path

import pytest

from infra.settings import Settings
from local import state
from local.plan import PARTS, SIMULATORS, StackPlan, make_plan
from local.ports import HOST
from local.process_spec import StackError


def plan(
    home: Path,
    variables: Mapping[str, str],
    *,
    parts: tuple[str, ...] = PARTS,
    without: tuple[str, ...] = (),
    pipeline: bool = True,
) -> StackPlan:
    settings = Settings.load({"LEADSTREAM_HOME": str(home), **variables})
    return make_plan(home, settings, parts=parts, without=without, pipeline=pipeline)


def test_each_process_keeps_its_port_while_it_is_free(tmp_path: Path) -> None:
    first = plan(tmp_path, {})
    assert plan(tmp_path, {}).environment == first.environment
    ports = state.read_json(tmp_path / "ports.json")
    assert len(set(ports.values())) == len(ports)
    with socket.create_server((HOST, ports["redis"])):
        moved = plan(tmp_path, {})
    changed = {key for key, value in first.environment.items() if moved.environment[key] != value}
    assert changed == {"LEADSTREAM_REDIS_URL"}


def test_two_folders_have_different_ports(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        plan(tmp_path / name, {})
    one, other = (set(state.read_json(tmp_path / name / "ports.json").values()) for name in ("a", "b"))
    assert len(one & other) < len(one) / 2  # chosen at random among 12,000: a few may meet


def test_the_port_of_the_api_can_be_set(tmp_path: Path) -> None:
    planned = plan(tmp_path, {"LEADSTREAM_API_PORT": "18080"})
    assert planned.environment["LEADSTREAM_API_PORT"] == "18080"
    assert planned.addresses["api"] == {"url": "http://127.0.0.1:18080"}
    assert plan(tmp_path, {"LEADSTREAM_API_PORT": "0"}).environment["LEADSTREAM_API_PORT"] != "0"


def test_a_simulator_replaces_a_service_until_the_user_configures_it(tmp_path: Path) -> None:
    planned = plan(tmp_path, {"LEADSTREAM_CRM_HUBSPOT_TOKEN": "mine"})
    assert [spec.name for spec in planned.simulators] == ["simulator-pdl", "simulator-smtp"]
    assert not [name for name in planned.environment if "HUBSPOT" in name]
    assert "crm-hubspot" in {spec.name for spec in planned.workers}
    assert "hubspot" not in planned.addresses


def test_a_connector_without_settings_is_not_started(tmp_path: Path) -> None:
    names = {spec.name for spec in plan(tmp_path, {}, without=("simulator-hubspot",)).workers}
    assert "crm-hubspot" not in names
    assert {"api", "intake", "enrichment", "campaigns", "sink-clickhouse", "messages-email"} <= names


def test_the_settings_of_simulators_exist(tmp_path: Path) -> None:
    settings = Settings.load(dict(plan(tmp_path, {}).environment))  # raises for a setting that does not exist
    assert all(settings.configured(each.section) for each in SIMULATORS.values())


def test_parts_can_be_selected_and_excluded(tmp_path: Path) -> None:
    planned = plan(tmp_path, {}, parts=("kafka", "postgres"), without=("postgres",), pipeline=False)
    assert (list(planned.parts), planned.simulators, planned.workers) == (["kafka"], (), ())
    assert set(planned.environment) == {"LEADSTREAM_HOME", "LEADSTREAM_KAFKA_BOOTSTRAP"}


def test_an_unknown_name_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(StackError, match=r"no such process: kafak; there are: .*kafka"):
        plan(tmp_path, {}, without=("kafak",))


def test_secrets_are_kept_and_readable_by_the_owner_only(tmp_path: Path) -> None:
    first, second = (plan(tmp_path, {}).environment["LEADSTREAM_CRM_HUBSPOT_TOKEN"] for _ in range(2))
    assert first == second
    assert (tmp_path / "hubspot.secret").stat().st_mode & 0o077 == 0
