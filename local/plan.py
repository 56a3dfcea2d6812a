"""What a stack consists of: its ports, its settings, where everything is, and every process with how it is run."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from infra import processes
from infra.settings import Settings
from local import state
from local.clickhouse import clickhouse
from local.kafka import kafka
from local.part import HOST, Part, PartError, answers, listens
from local.postgres import postgres
from local.redis import redis

PARTS = ("kafka", "postgres", "clickhouse", "redis")
_OTHERS = 15  # niceness of stand-ins for others' services, which would have machines of their own
_WORKER_STOP_S = 5.0  # beyond the time that a worker gives its work in hand


@dataclass(frozen=True, slots=True)
class Simulated:
    """Whom a simulator stands in for: a connector's settings section, and what they are set to."""

    section: str
    settings: Mapping[str, str]
    limits: Mapping[str, int] = field(default_factory=dict)  # what <state>/<name>.json tells it at its start


SIMULATORS = {
    "hubspot": Simulated("crm_hubspot", {"BASE_URL": f"http://{HOST}:{{port}}", "TOKEN": "pat-{secret}"}),
    "pdl": Simulated(
        "provider_pdl",
        {
            "BASE_URL": f"http://{HOST}:{{port}}",
            "API_KEY": "{secret}",
            "REQUESTS_PER_MINUTE": "1000000",
        },
        {"per_minute": 1_000_000},  # an account that a demonstration does not exhaust
    ),
    "smtp": Simulated("channel_email", {"URL": f"smtp://{HOST}:{{port}}"}),
}
# Name -> what `leadstream status` calls its address, and the address.
_PLACES = {
    "kafka": ("bootstrap", f"{HOST}:{{port}}"),
    "postgres": ("dsn", f"postgresql://leadstream@{HOST}:{{port}}/leadstream"),
    "clickhouse": ("url", f"http://{HOST}:{{port}}/leadstream"),
    "redis": ("url", f"redis://{HOST}:{{port}}/0"),
    "api": ("url", f"http://{HOST}:{{port}}"),
    "hubspot": ("url", f"http://{HOST}:{{port}}"),
    "pdl": ("url", f"http://{HOST}:{{port}}"),
    "smtp": ("url", f"smtp://{HOST}:{{port}}"),
}
_SETTINGS = {
    "kafka": "KAFKA_BOOTSTRAP",
    "postgres": "DATABASE_URL",
    "clickhouse": "CLICKHOUSE_URL",
    "redis": "REDIS_URL",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What to start, in three steps: what everything stands on, then stand-ins for others' services, then us."""

    environment: Mapping[str, str]
    places: Mapping[str, Mapping[str, str]]
    parts: Mapping[str, Callable[[], Part]]  # makes its folders first, which takes seconds the first time: in a thread
    simulators: tuple[Part, ...]
    workers: tuple[Part, ...]

    def seen(self, home: Path) -> dict[str, dict[str, str]]:
        """Return the places, with what is only known once it runs."""
        places = {name: dict(place) for name, place in self.places.items()}
        inbox = home / "simulators" / "smtp" / "http_port"
        if "smtp" in places and inbox.exists():
            places["smtp"]["inbox"] = f"http://{HOST}:{inbox.read_text('utf-8')}"
        return places


def plan(home: Path, settings: Settings, *, parts: Iterable[str], pipeline: bool, without: Iterable[str]) -> Plan:
    """Decide what the stack of ``home`` consists of.

    A simulator stands in where the user has set nothing for that connector; a connector that has neither is left out.

    Raises:
        PartError: a name in ``parts`` or ``without`` that there is none of; no free port.

    """
    left_out = frozenset(without)
    listed = processes.load_processes()
    known = {*PARTS, *listed, *(f"simulator-{name}" for name in SIMULATORS)}
    if wrong := (left_out | set(parts)) - known:
        raise PartError(f"no such process: {', '.join(sorted(wrong))}; there are: {', '.join(sorted(known))}")
    simulated = [
        name
        for name, of in SIMULATORS.items()
        if pipeline and f"simulator-{name}" not in left_out and not settings.configured(of.section)
    ]
    stood_in_for = {SIMULATORS[name].section for name in simulated}
    workers = [
        process
        for process in listed.values()
        if pipeline and process.name not in left_out
        # A connector that nobody has set up has nothing to do, and would only say so.
        if not process.section or process.section in stood_in_for or settings.configured(process.section)
    ]
    chosen = [name for name in PARTS if name in set(parts) - left_out]
    ports = _ports(home, settings, chosen, simulated, workers)
    return Plan(
        environment=_environment(home, ports, chosen, simulated),
        places=_places(ports, chosen, simulated),
        parts=_makers(home, ports, chosen),
        simulators=tuple(_simulators(home, ports, simulated)),
        workers=tuple(_workers(settings, ports, workers)),
    )


def _ports(
    home: Path, settings: Settings, parts: list[str], simulated: list[str], workers: list[processes.Process]
) -> dict[str, int]:
    names = [*parts, *(["kafka-controller"] if "kafka" in parts else []), *simulated]
    names += [name if process.name == "api" else f"health-{name}" for process in workers for name in _names(process)]
    wants_one = "api_port" in settings.model_fields_set and settings.api_port
    return state.ports(home, names, {"api": settings.api_port} if wants_one and "api" in names else {})


def _environment(home: Path, ports: Mapping[str, int], parts: list[str], simulated: list[str]) -> dict[str, str]:
    values = {_SETTINGS[name]: _PLACES[name][1].format(port=ports[name]) for name in parts}
    if "api" in ports:
        values["API_PORT"] = str(ports["api"])
    for name in simulated:
        section, secret = SIMULATORS[name].section.upper(), _secret(home, name)
        for key, text in SIMULATORS[name].settings.items():
            values[f"{section}_{key}"] = text.format(port=ports[name], secret=secret)
    return {"LEADSTREAM_HOME": str(home)} | {f"LEADSTREAM_{name}": value for name, value in values.items()}


def _places(ports: Mapping[str, int], parts: list[str], simulated: list[str]) -> dict[str, dict[str, str]]:
    there = [*parts, *(["api"] if "api" in ports else []), *simulated]
    return {name: {_PLACES[name][0]: _PLACES[name][1].format(port=ports[name])} for name in there}


def _makers(home: Path, ports: Mapping[str, int], parts: list[str]) -> dict[str, Callable[[], Part]]:
    makers: dict[str, Callable[[], Part]] = {
        "kafka": lambda: kafka(home, ports["kafka"], ports["kafka-controller"]),
        "postgres": lambda: postgres(home, ports["postgres"]),
        "clickhouse": lambda: clickhouse(home, ports["clickhouse"]),
        "redis": lambda: redis(home, ports["redis"]),
    }
    return {name: makers[name] for name in parts}


def _simulators(home: Path, ports: Mapping[str, int], names: list[str]) -> Iterator[Part]:
    for name in names:
        folder = home / "simulators" / name
        folder.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, "-m", "simulators", name, "--port", str(ports[name]), "--state", str(folder)]
        if limits := SIMULATORS[name].limits:
            state.write(folder / f"{name}.json", json.dumps(dict(limits)))
        yield Part(f"simulator-{name}", words, partial(listens, ports[name]), nice=_OTHERS)


def _workers(settings: Settings, ports: Mapping[str, int], listed: list[processes.Process]) -> Iterator[Part]:
    for process in listed:
        is_api = process.name == "api"
        command = [sys.executable, "-m", process.module, *process.args]
        stop_s = settings.shutdown_s + _WORKER_STOP_S
        for name in _names(process):
            port = ports["api" if is_api else f"health-{name}"]
            own = {} if is_api else {"LEADSTREAM_HEALTH_PORT": str(port), "LEADSTREAM_INSTANCE": f"local-{name}"}
            yield Part(name, command, partial(answers, port), own, stop_s=stop_s, nice=process.nice)


def _names(process: processes.Process) -> list[str]:
    """Return the name of each replica: the first has that of the process."""
    return [process.name, *(f"{process.name}-{number}" for number in range(2, process.replicas + 1))]


def _secret(home: Path, name: str) -> str:
    file = home / f"{name}.secret"
    if not file.exists():
        state.write(file, secrets.token_hex(16), 0o600)
    return file.read_text("utf-8")
