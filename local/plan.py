"""What a stack consists of: its ports, its settings, the addresses of its services, and how each process is run."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from infra import processes
from infra.keys import new_key
from infra.settings import Settings
from local.brokers import Cluster, choose_count, cluster_id, controller, names_of
from local.clickhouse import clickhouse
from local.kafka import kafka
from local.ports import HOST, accepts_connections, http_ready
from local.postgres import postgres
from local.process_spec import ProcessSpec, StackError
from local.redis import redis
from local.state import assign_ports, write_atomically

PARTS = ("kafka", "postgres", "clickhouse", "redis")
_SIMULATOR_NICE = 15  # the services that they replace would not use the processors of this machine
_WORKER_STOP_S = 5.0  # added to a worker's own timeout for work in progress


@dataclass(frozen=True, slots=True)
class SimulatedService:
    """The service that a simulator replaces.

    ``section`` is the settings section of its connector and ``settings`` are the values of that section, where
    ``{port}`` and ``{secret}`` are replaced. ``limits`` is written to ``<simulator's folder>/<name>.json``.
    """

    section: str
    settings: Mapping[str, str]
    limits: Mapping[str, int] = field(default_factory=dict)


SIMULATORS = {
    "hubspot": SimulatedService(
        "crm_hubspot",
        {
            "BASE_URL": f"http://{HOST}:{{port}}",
            "TOKEN": "pat-{secret}",
            "MERGE_DELAY_S": "0",  # what a demo shows must not take an hour
        },
    ),
    "pdl": SimulatedService(
        "provider_pdl",
        {
            "BASE_URL": f"http://{HOST}:{{port}}",
            "API_KEY": "{secret}",
            "REQUESTS_PER_MINUTE": "1000000",
        },
        {"per_minute": 1_000_000},  # more than a demo can use
    ),
    "smtp": SimulatedService("channel_email", {"URL": f"smtp://{HOST}:{{port}}"}),
}
# Service -> the name of its address in stack.json, and the address.
_ADDRESSES = {
    "kafka": ("bootstrap", f"{HOST}:{{port}}"),
    "postgres": ("dsn", f"postgresql://leadstream:{{secret}}@{HOST}:{{port}}/leadstream"),
    "clickhouse": ("url", f"http://leadstream:{{secret}}@{HOST}:{{port}}/leadstream"),
    "redis": ("url", f"redis://:{{secret}}@{HOST}:{{port}}/0"),
    "api": ("url", f"http://{HOST}:{{port}}"),
    "hubspot": ("url", f"http://{HOST}:{{port}}"),
    "pdl": ("url", f"http://{HOST}:{{port}}"),
    "smtp": ("url", f"smtp://{HOST}:{{port}}"),
}
_READER = "clickhouse-reader"
_SETTINGS = {
    "kafka": "KAFKA_BOOTSTRAP",
    "postgres": "DATABASE_URL",
    "clickhouse": "CLICKHOUSE_URL",
    "redis": "REDIS_URL",
}


@dataclass(frozen=True, slots=True)
class StackPlan:
    """What to start: the parts first, then the workers. The simulators start at once; they depend on nothing.

    ``parts`` holds a factory for each part. The first call creates the part's data folder, which takes seconds, so call
    it in a thread. ``environment`` holds the settings that connect to the stack.
    """

    environment: Mapping[str, str]
    addresses: Mapping[str, Mapping[str, str]]
    parts: Mapping[str, Callable[[], ProcessSpec]]
    simulators: tuple[ProcessSpec, ...]
    workers: tuple[ProcessSpec, ...]

    def current_addresses(self, home: Path) -> dict[str, dict[str, str]]:
        """Return the addresses, with those that are known only after the process has started (the SMTP inbox)."""
        addresses = {service: dict(address) for service, address in self.addresses.items()}
        inbox_port = home / "simulators" / "smtp" / "http_port"
        if "smtp" in addresses and inbox_port.exists():
            addresses["smtp"]["inbox"] = f"http://{HOST}:{inbox_port.read_text('utf-8')}"
        return addresses


def make_plan(
    home: Path,
    settings: Settings,
    *,
    parts: Iterable[str],
    pipeline: bool,
    without: Iterable[str],
    brokers: int | None = None,
) -> StackPlan:
    """Decide what the stack of the state folder ``home`` consists of.

    A simulator replaces each service that the user has not configured. A connector with neither settings nor a
    simulator is not started.

    Args:
        home: the state folder.
        settings: the user's settings.
        parts: the parts to start, of PARTS.
        pipeline: whether to start simulators and workers.
        without: names of processes that are not started.
        brokers: number of Kafka brokers; None: that of the state folder, or one if it is new.

    Raises:
        StackError: a name in ``parts`` or ``without`` does not exist, there is no free port, or the state folder was
            created with another number of brokers.

    """
    excluded = frozenset(without)
    listed = processes.load_processes()
    broker_names = names_of(choose_count(home, brokers))
    known = {*PARTS, *broker_names, *listed, *(f"simulator-{name}" for name in SIMULATORS)}
    if unknown := (excluded | set(parts)) - known:
        raise StackError(f"no such process: {', '.join(sorted(unknown))}; there are: {', '.join(sorted(known))}")
    simulated = [
        name
        for name, service in SIMULATORS.items()
        if pipeline and f"simulator-{name}" not in excluded and not settings.configured(service.section)
    ]
    simulated_sections = {SIMULATORS[name].section for name in simulated}
    workers = [
        process
        for process in listed.values()
        if pipeline and process.name not in excluded
        # A connector that is not configured would exit at once with an error about its settings.
        if not process.section or process.section in simulated_sections or settings.configured(process.section)
    ]
    chosen = [name for name in PARTS if name in set(parts) - excluded]
    started_brokers = broker_names if "kafka" in chosen else ()
    ports = _ports(
        home, settings, [*chosen, *started_brokers[1:], *map(controller, started_brokers), *simulated], workers
    )
    cluster = Cluster(home, broker_names, ports, cluster_id(home, len(broker_names)), settings.kafka_flush)
    addresses = _addresses(home, ports, [*chosen, *(["api"] if "api" in ports else []), *simulated])
    if started_brokers:
        addresses["kafka"] = {"bootstrap": cluster.bootstrap}
    return StackPlan(
        environment=_environment(home, ports, chosen, simulated, addresses),
        addresses=addresses,
        parts={
            name: factory for name, factory in _part_factories(home, ports, chosen, cluster) if name not in excluded
        },
        simulators=tuple(_simulators(home, ports, simulated)),
        workers=tuple(_workers(settings, ports, workers)),
    )


def _ports(home: Path, settings: Settings, services: list[str], workers: list[processes.Process]) -> dict[str, int]:
    names = [*services, *(f"health-{name}" for process in workers for name in _replica_names(process))]
    names += ["api"] * any(process.name == "api" for process in workers)
    set_by_user = "api_port" in settings.model_fields_set and settings.api_port
    return assign_ports(home, names, {"api": settings.api_port} if set_by_user and "api" in names else {})


def _environment(
    home: Path,
    ports: Mapping[str, int],
    parts: list[str],
    simulated: list[str],
    addresses: Mapping[str, Mapping[str, str]],
) -> dict[str, str]:
    values = {_SETTINGS[name]: next(iter(addresses[name].values())) for name in parts}
    if "clickhouse" in parts:
        password = _secret(home, _READER)
        values["CLICKHOUSE_READ_URL"] = f"http://reader:{password}@{HOST}:{ports['clickhouse']}/leadstream"
    if "api" in ports:
        values |= {"API_PORT": str(ports["api"]), "API_KEY": api_key(home)}
    for name in simulated:
        section, secret = SIMULATORS[name].section.upper(), _secret(home, name)
        for key, text in SIMULATORS[name].settings.items():
            values[f"{section}_{key}"] = text.format(port=ports[name], secret=secret)
    return {"LEADSTREAM_HOME": str(home)} | {f"LEADSTREAM_{name}": value for name, value in values.items()}


def _addresses(home: Path, ports: Mapping[str, int], services: list[str]) -> dict[str, dict[str, str]]:
    return {name: {_ADDRESSES[name][0]: _address(home, name, ports[name])} for name in services}


def _address(home: Path, service: str, port: int) -> str:
    template = _ADDRESSES[service][1]
    return template.format(port=port, secret=_secret(home, service) if "{secret}" in template else "")


def _part_factories(
    home: Path, ports: Mapping[str, int], parts: list[str], cluster: Cluster
) -> Iterator[tuple[str, Callable[[], ProcessSpec]]]:
    factories: dict[str, Callable[[], ProcessSpec]] = {
        "postgres": lambda: postgres(home, ports["postgres"], _secret(home, "postgres")),
        "clickhouse": lambda: clickhouse(
            home, ports["clickhouse"], _secret_file(home, "clickhouse"), _secret_file(home, _READER)
        ),
        "redis": lambda: redis(home, ports["redis"], _secret(home, "redis")),
    }
    for name in parts:
        if name == "kafka":
            yield from ((broker, partial(kafka, cluster, broker)) for broker in cluster.names)
        else:
            yield name, factories[name]


def _simulators(home: Path, ports: Mapping[str, int], names: list[str]) -> Iterator[ProcessSpec]:
    for name in names:
        folder = home / "simulators" / name
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "simulators", name, "--port", str(ports[name]), "--state", str(folder)]
        if limits := SIMULATORS[name].limits:
            write_atomically(folder / f"{name}.json", json.dumps(dict(limits)))
        is_ready = partial(accepts_connections, ports[name])
        yield ProcessSpec(f"simulator-{name}", command, is_ready, nice=_SIMULATOR_NICE)


def _workers(settings: Settings, ports: Mapping[str, int], listed: list[processes.Process]) -> Iterator[ProcessSpec]:
    for process in listed:
        command = [sys.executable, "-m", process.module, *process.args]
        stop_s = settings.shutdown_s + _WORKER_STOP_S
        for name in _replica_names(process):
            port = ports[f"health-{name}"]
            own = {"LEADSTREAM_HEALTH_PORT": str(port), "LEADSTREAM_INSTANCE": f"local-{name}"}
            yield ProcessSpec(name, command, partial(http_ready, port), own, stop_s=stop_s, nice=process.nice)


def _replica_names(process: processes.Process) -> list[str]:
    """Return a name for each replica; the first has the name of the process."""
    return [process.name, *(f"{process.name}-{number}" for number in range(2, process.replicas + 1))]


def api_key(home: Path) -> str:
    """Return the API key of the stack, in the file ``api.secret``; create it if it is missing."""
    return _secret_file(home, "api", lambda: new_key()[1]).read_text("utf-8").strip()


def _secret(home: Path, name: str) -> str:
    return _secret_file(home, name).read_text("utf-8")


def _secret_file(home: Path, name: str, make: Callable[[], str] = secrets.token_hex) -> Path:
    """Return the file of the password of the service ``name``; create it, for its owner only, if it is missing."""
    file = home / f"{name}.secret"
    if not file.exists():
        write_atomically(file, make(), 0o600)
    return file
