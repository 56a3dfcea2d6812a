"""Run one simulator: ``python -m simulators NAME --port N --state DIR``. SIGTERM or SIGINT stops it, with exit code 0.

A simulator is a module of this package. It defines ``app(state: Path)``, which returns an ASGI application, or, when it
speaks another protocol than HTTP, ``async def serve(host, port, state, http_port)``, which runs until it is cancelled.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from collections.abc import Awaitable
from pathlib import Path

import uvloop

import simulators
from infra import web
from infra.runtime import until_signalled


def names() -> list[str]:
    """Return the names of all simulators."""
    return sorted(file.name for file in pkgutil.iter_modules(simulators.__path__) if file.name[0] != "_")


async def _main(name: str, host: str, port: int, state: Path, http_port: int) -> None:
    module = importlib.import_module(f"simulators.{name}")
    serving: Awaitable[None] = (
        module.serve(host, port, state, http_port)
        if hasattr(module, "serve")
        else web.serve(module.app(state), web.listen(host, port), lifespan=True)
    )
    await until_signalled(serving)


def main() -> None:
    """Parse the command line and run the simulator."""
    parser = argparse.ArgumentParser(prog="python -m simulators", description="Run a simulator of an external service.")
    parser.add_argument("name", choices=names())
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument(
        "--http-port",
        type=int,
        default=0,
        help="port of the test endpoints when --port does not speak HTTP (0: any free port)",
    )
    parser.add_argument("--state", type=Path, required=True, help="folder of the data that survives a restart")
    arguments = parser.parse_args()
    arguments.state.mkdir(parents=True, exist_ok=True)
    uvloop.run(_main(arguments.name, arguments.host, arguments.port, arguments.state, arguments.http_port))


if __name__ == "__main__":
    main()
