"""docker-compose.yml is the twin of the embedded stack: the same processes, real settings, nothing unwatched."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from infra import metrics
from infra.plugins import discover
from infra.processes import load_processes
from infra.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"
SECTIONS = {"provider": "streams.enrichment.providers", "crm": "sinks.crm", "channel": "sinks.messages"}

Services = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(FILE.read_text("utf-8"))
    return found


@pytest.fixture
def services(document: dict[str, Any]) -> Services:
    found: Services = document["services"]
    return found


def pipeline(services: Services) -> dict[str, list[str]]:
    """Return the commands of the services that run one of our modules, by service."""
    commands = {name: service.get("command", []) for name, service in services.items()}
    return {name: command[2:] for name, command in commands.items() if command[:2] == ["python", "-m"]}


def depended_on(services: Services, condition: str) -> set[str]:
    """Return the services that another one waits for in this way."""
    waits = [service.get("depends_on", {}) for service in services.values()]
    return {name for wait in waits for name, how in wait.items() if how["condition"] == condition}


def unwatched(services: Services) -> list[str]:
    """Return the services that nothing asks whether they are well: one that others see end needs no asking."""
    ends = depended_on(services, "service_completed_successfully")
    return [
        name for name, service in services.items() if "test" not in service.get("healthcheck", {}) and name not in ends
    ]


def connector_settings() -> dict[str, set[str]]:
    """Return the settings of every connector by their section, such as ``CRM_HUBSPOT_``."""
    return {
        f"{kind}_{name}_".upper(): {field.upper() for field in module.Config.model_fields}
        for kind, package in SECTIONS.items()
        for name, module in discover(package).items()
    }


def unknown_settings(services: Services) -> list[str]:
    sections = connector_settings()
    keys = {key.removeprefix(PREFIX) for service in services.values() for key in environment(service) if PREFIX in key}
    return sorted(
        key
        for key in keys
        if key.lower() not in Settings.model_fields
        and not any(
            key.removeprefix(section) in fields for section, fields in sections.items() if key.startswith(section)
        )
    )


def environment(service: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = service.get("environment", {})
    return found


def defaults(text: str) -> str:
    """Put in the default of every ``${NAME:-default}``, as compose does when nothing is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def test_the_pipeline_is_that_of_the_embedded_stack(services: Services) -> None:
    wanted = {process.name: [process.module, *process.args] for process in load_processes().values()}
    assert pipeline(services) == wanted
    wanted_replicas = {process.name: process.replicas for process in load_processes().values() if process.name != "api"}
    assert {name: services[name].get("deploy", {}).get("replicas", 1) for name in wanted_replicas} == wanted_replicas


def test_there_are_two_api_instances_behind_the_load_balancer(services: Services) -> None:
    assert services["api"]["deploy"]["replicas"] == 2
    assert "ports" not in services["api"]
    assert "server-template api 1-10 api:8080" in (ROOT / "infra/compose/haproxy.cfg").read_text("utf-8")


def test_every_service_is_watched(services: Services) -> None:
    assert not unwatched(services)


def test_everybody_waits_for_healthy_services(services: Services) -> None:
    assert not depended_on(services, "service_started")
    pipelines = pipeline(services)
    assert all(services[name]["depends_on"]["prepare"] for name in pipelines)
    assert {"kafka", "postgres", "pgbouncer", "clickhouse"} <= set(services["prepare"]["depends_on"])


def test_every_setting_is_a_real_one(services: Services) -> None:
    assert not unknown_settings(services)


def test_the_defaults_are_valid_settings(services: Services) -> None:
    for name in pipeline(services):
        given = {key: defaults(value) for key, value in environment(services[name]).items()}
        settings = Settings.load(given)
        for section, package in SECTIONS.items():
            for connector, module in discover(package).items():
                prefix = f"{PREFIX}{section}_{connector}_".upper()
                if any(key.startswith(prefix) for key in given):
                    settings.section(f"{section}_{connector}", module.Config)


def test_every_service_is_bounded_and_bound_to_this_machine(document: dict[str, Any], services: Services) -> None:
    assert "version" not in document
    for name, service in services.items():
        assert "limits" in service["deploy"]["resources"], name
        assert "restart" in service, name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert ":latest" not in service["image"], name
        assert ":" in service["image"], name


def test_every_mounted_file_is_there(services: Services) -> None:
    mounts = [volume.split(":")[0] for service in services.values() for volume in service.get("volumes", [])]
    assert not [mount for mount in mounts if mount.startswith("./") and not (ROOT / mount).exists()]


def test_the_example_env_lists_every_variable() -> None:
    used = set(re.findall(r"(?<!\$)\$\{(\w+)", FILE.read_text("utf-8")))
    listed = re.findall(r"^(\w+)=", (ROOT / "infra/compose/example.env").read_text("utf-8"), re.MULTILINE)
    assert used == set(listed)


def test_dashboards_and_alerts_ask_for_metrics_that_exist() -> None:
    known: set[str] = set()
    for metric in vars(metrics).values():
        for family in metric.describe() if isinstance(metric, MetricWrapperBase) else ():
            suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
            known |= {family.name + suffix for suffix in suffixes}
    asked = set(re.findall(r"\bleadstream_\w+", " ".join(queries())))
    assert asked
    assert asked <= known


def queries() -> Iterator[str]:
    """Yield every PromQL expression of the dashboards and of the alerts."""
    for file in (ROOT / "infra/prometheus/rules").glob("*.yaml"):
        for group in yaml.safe_load(file.read_text("utf-8"))["groups"]:
            yield from (rule["expr"] for rule in group["rules"])
    for file in (ROOT / "infra/grafana/dashboards").glob("*.json"):
        for panel in json.loads(file.read_text("utf-8"))["panels"]:
            yield from (target["expr"] for target in panel.get("targets", []))


def compose() -> list[str] | None:
    """Return the words that run Docker Compose here: the plugin, or a binary of that name."""
    for words in (["docker", "compose"], ["docker-compose"]):
        if (
            shutil.which(words[0])
            and not subprocess.run([*words, "version"], capture_output=True, check=False).returncode
        ):
            return words
    return None


@pytest.mark.parametrize("profile", [[], ["--profile", "simulators"]], ids=["plain", "simulators"])
def test_compose_itself_accepts_the_file(profile: list[str], tmp_path: Path) -> None:
    words = compose()
    if words is None:
        pytest.skip(
            "neither `docker compose` nor `docker-compose` is here; what it checks beyond this file's tests is left"
        )
    (tmp_path / "empty.env").touch()  # a .env of this machine must not help
    command = [*words, "--env-file", str(tmp_path / "empty.env"), "-f", str(FILE), *profile, "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# -- the checks themselves can fail ------------------------------------------------------------------------------------


def test_the_checks() -> None:
    made_up: Services = {
        "intake": {"command": ["python", "-m", "streams.intake"], "environment": {"LEADSTREAM_KAFKA_BOOTSTRAP": "k:1"}},
        "sync": {
            "command": ["python", "-m", "sinks", "crm", "hubspot"],
            "healthcheck": {"test": ["CMD", "true"]},
            "environment": {
                "LEADSTREAM_CRM_HUBSPOT_TOKEN": "t",
                "LEADSTREAM_CRM_HUBSPOT_TOKENS": "t",
                "LEADSTREAM_X": "",
            },
            "depends_on": {"once": {"condition": "service_completed_successfully"}},
        },
        "once": {"command": ["leadstream", "prepare"]},
    }
    assert pipeline(made_up) == {"intake": ["streams.intake"], "sync": ["sinks", "crm", "hubspot"]}
    assert unwatched(made_up) == ["intake"]
    assert unknown_settings(made_up) == ["CRM_HUBSPOT_TOKENS", "X"]
    assert defaults("http://${HOST:-a.b}:${PORT:-1}/") == "http://a.b:1/"
