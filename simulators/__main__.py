"""Start one simulator: ``python -m simulators NAME --port N --state DIR``, until SIGTERM or SIGINT, then exit 0.

A simulator is a file of this folder. It defines ``app(state: Path)``, which returns an ASGI application, or, when it
does not speak HTTP, ``async def serve(host, port, state, http_port)``, which runs until it is cancelled.
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
    """Return the names of the simulators there are."""
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
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m simulators", description="Stand-ins for others' services.")
    parser.add_argument("name", choices=names())
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--http-port", type=int, default=0, help="of one that speaks something else on --port")
    parser.add_argument("--state", type=Path, required=True, help="folder that holds its state over restarts")
    given = parser.parse_args()
    given.state.mkdir(parents=True, exist_ok=True)
    uvloop.run(_main(given.name, given.host, given.port, given.state, given.http_port))


if __name__ == "__main__":
    main()
