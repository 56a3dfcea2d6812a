"""Run the supervisor over tiny processes: ``python fake_stack.py HOME SPECIFICATION`` (JSON: step -> name -> code).

A tiny process is Python code; it is ready when the file ``HOME/NAME.ready`` is there.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from local.part import Part
from local.plan import Plan
from local.state import locked
from local.supervisor import Supervisor

PRELUDE = """
import pathlib, signal, sys, time
home, name = pathlib.Path(sys.argv[1]), sys.argv[2]
def ready(): (home / f"{name}.ready").touch()
def wait(): signal.pause()
"""


def ready_of(file: Path) -> Callable[[], Awaitable[bool]]:
    async def ready() -> bool:
        return file.exists()  # noqa: ASYNC240 - one look

    return ready


def part(home: Path, name: str, code: str) -> Part:
    command = [sys.executable, "-c", PRELUDE + code, str(home), name]
    return Part(name, command, ready_of(home / f"{name}.ready"), stop_s=1)


def main(home: Path, steps: dict[str, dict[str, str]]) -> int:
    made = {step: [part(home, *each) for each in named.items()] for step, named in steps.items()}
    wanted = Plan(
        environment={"LEADSTREAM_HOME": str(home), "LEADSTREAM_SHUTDOWN_S": "7"},
        places={},
        parts={each.name: partial(_same, each) for each in made.get("parts", [])},
        simulators=tuple(made.get("simulators", [])),
        workers=tuple(made.get("workers", [])),
    )
    with locked(home):
        return asyncio.run(Supervisor(home, wanted).run())


def _same(each: Part) -> Part:
    return each


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), json.loads(sys.argv[2])))
