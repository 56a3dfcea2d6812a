"""Run the supervisor over small test processes: ``python small_stack.py HOME STEPS`` (JSON: step -> name -> code).

A test process is Python code. It is ready when the file ``HOME/NAME.ready`` exists.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from local.plan import StackPlan
from local.process_spec import ProcessSpec
from local.state import locked
from local.supervisor import Supervisor

PRELUDE = """
import pathlib, signal, sys, time
home, name = pathlib.Path(sys.argv[1]), sys.argv[2]
def ready(): (home / f"{name}.ready").touch()
def wait(): signal.pause()
"""


def exists(file: Path) -> Callable[[], Awaitable[bool]]:
    async def is_ready() -> bool:
        return file.exists()  # noqa: ASYNC240 - one system call

    return is_ready


def process_spec(home: Path, name: str, code: str) -> ProcessSpec:
    command = [sys.executable, "-c", PRELUDE + code, str(home), name]
    return ProcessSpec(name, command, exists(home / f"{name}.ready"), stop_s=1)


def main(home: Path, steps: dict[str, dict[str, str]]) -> int:
    specs = {step: [process_spec(home, *each) for each in named.items()] for step, named in steps.items()}
    plan = StackPlan(
        environment={"LEADSTREAM_HOME": str(home), "LEADSTREAM_SHUTDOWN_S": "7"},
        addresses={},
        parts={each.name: partial(_same, each) for each in specs.get("parts", [])},
        simulators=tuple(specs.get("simulators", [])),
        workers=tuple(specs.get("workers", [])),
    )
    with locked(home):
        return asyncio.run(Supervisor(home, plan).run())


def _same(spec: ProcessSpec) -> ProcessSpec:
    return spec


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), json.loads(sys.argv[2])))
