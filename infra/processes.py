"""The processes of the pipeline, read from ``processes.toml``, their only list."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("processes.toml")
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Process:
    """One process of the pipeline; ``module`` and ``args`` follow ``python -m``.

    ``section``: the settings section of its connector, empty if it runs none. ``nice``: its niceness when all processes
    run on one machine. ``replicas``: the number of its instances.
    """

    name: str
    module: str
    args: tuple[str, ...] = ()
    section: str = ""
    nice: int = 0
    replicas: int = 1


@cache
def load_processes(file: Path = FILE, root: Path = ROOT) -> dict[str, Process]:
    """Return the processes by name, one for each connector file. Connectors are not imported, only listed."""
    found: dict[str, Process] = {}
    for name, table in tomllib.loads(file.read_text("utf-8")).items():
        stems = connectors(root, table["expand"]) if "expand" in table else [""]
        for stem in stems:
            own = {key: value.replace("*", stem) for key, value in table.items() if isinstance(value, str)}
            module, *args = own["run"].split()
            process = Process(
                name.replace("*", stem),
                module,
                tuple(args),
                own.get("section", ""),
                nice=table.get("nice", 0),
                replicas=table.get("replicas", 1),
            )
            found[process.name] = process
    return found


def connectors(root: Path, package: str) -> list[str]:
    """Return the names of the connector files of ``package``: those that define a class ``Config``."""
    files = sorted(root.joinpath(*package.split(".")).glob("[!_]*.py"))
    return [file.stem for file in files if "\nclass Config(" in file.read_text("utf-8")]
