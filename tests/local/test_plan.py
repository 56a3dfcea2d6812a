"""What a stack consists of: ports, settings, stand-ins."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path

import pytest

from infra.settings import Settings
from local import state
from local.part import HOST, PartError
from local.plan import PARTS, SIMULATORS, Plan, plan


def made(
    home: Path, given: Mapping[str, str], parts: tuple[str, ...] = PARTS, without: tuple[str, ...] = (), **own: bool
) -> Plan:
    settings = Settings.load({"LEADSTREAM_HOME": str(home), **given})
    return plan(home, settings, parts=parts, without=without, pipeline=own.get("pipeline", True))


def test_everything_has_a_port_of_its_own_and_keeps_it(tmp_path: Path) -> None:
    first = made(tmp_path, {})
    assert made(tmp_path, {}).environment == first.environment
    ports = state.load(tmp_path / "ports.json")
    assert len(set(ports.values())) == len(ports)
    with socket.create_server((HOST, ports["redis"])):
        moved = made(tmp_path, {})
    changed = {key for key, value in first.environment.items() if moved.environment[key] != value}
    assert changed == {"LEADSTREAM_REDIS_URL"}


def test_two_folders_have_different_ports(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        made(tmp_path / name, {})
    one, other = (set(state.load(tmp_path / name / "ports.json").values()) for name in ("a", "b"))
    assert len(one & other) <= 1  # chosen at random among 12,000


def test_the_port_of_the_front_door_can_be_set(tmp_path: Path) -> None:
    wanted = made(tmp_path, {"LEADSTREAM_API_PORT": "18080"})
    assert wanted.environment["LEADSTREAM_API_PORT"] == "18080"
    assert wanted.places["api"] == {"url": "http://127.0.0.1:18080"}
    assert made(tmp_path, {"LEADSTREAM_API_PORT": "0"}).environment["LEADSTREAM_API_PORT"] != "0"


def test_a_simulator_stands_in_until_the_user_sets_the_real_thing(tmp_path: Path) -> None:
    wanted = made(tmp_path, {"LEADSTREAM_CRM_HUBSPOT_TOKEN": "mine"})
    assert [part.name for part in wanted.simulators] == ["simulator-pdl", "simulator-smtp"]
    assert not [name for name in wanted.environment if "HUBSPOT" in name]
    assert "crm-hubspot" in {part.name for part in wanted.workers}
    assert "hubspot" not in wanted.places


def test_a_connector_that_nobody_set_up_is_left_out(tmp_path: Path) -> None:
    names = {part.name for part in made(tmp_path, {}, without=("simulator-hubspot",)).workers}
    assert "crm-hubspot" not in names
    assert {"api", "intake", "enrichment", "campaigns", "sink-clickhouse", "messages-email"} <= names


def test_the_connector_settings_are_those_that_connectors_read(tmp_path: Path) -> None:
    settings = Settings.load(dict(made(tmp_path, {}).environment))  # names every setting that does not exist
    assert all(settings.configured(each.section) for each in SIMULATORS.values())


def test_parts_can_be_chosen_and_left_out(tmp_path: Path) -> None:
    wanted = made(tmp_path, {}, parts=("kafka", "postgres"), without=("postgres",), pipeline=False)
    assert (list(wanted.parts), wanted.simulators, wanted.workers) == (["kafka"], (), ())
    assert set(wanted.environment) == {"LEADSTREAM_HOME", "LEADSTREAM_KAFKA_BOOTSTRAP"}


def test_a_wrong_name_is_refused_with_the_right_ones(tmp_path: Path) -> None:
    with pytest.raises(PartError, match=r"no such process: kafak; there are: .*kafka"):
        made(tmp_path, {}, without=("kafak",))


def test_secrets_are_kept_and_only_the_owners(tmp_path: Path) -> None:
    first, second = (made(tmp_path, {}).environment["LEADSTREAM_CRM_HUBSPOT_TOKEN"] for _ in range(2))
    assert first == second
    assert (tmp_path / "hubspot.secret").stat().st_mode & 0o077 == 0
