"""Run one simulator: ``python -m simulators NAME --port N --state DIR``. SIGTERM or SIGINT stops it, with exit code 0.

A simulator is a module of this package. It defines ``app(state: Path)``, which returns an ASGI application, or, when it
speaks another protocol than HTTP, ``async def serve(host, port, state, http_port)``, which runs until it is cancelled.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import pkgutil
import signal
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

import simulators


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # _main handles the signals: uvicorn would end the process by the signal, not with exit code 0


def names() -> list[str]:
    """Return the names of all simulators."""
    return sorted(file.name for file in pkgutil.iter_modules(simulators.__path__) if file.name[0] != "_")


async def _serve_app(app: Any, host: str, port: int) -> None:
    server = _Server(
        uvicorn.Config(app, host, port, log_level="warning", access_log=False, lifespan="on", loop="none", backlog=512)
    )
    try:
        await server.serve()
    except asyncio.CancelledError:
        if server.started:
            await server.shutdown()
        raise


async def _main(name: str, host: str, port: int, state: Path, http_port: int) -> None:
    module = importlib.import_module(f"simulators.{name}")
    serving: Awaitable[None] = (
        module.serve(host, port, state, http_port)
        if hasattr(module, "serve")
        else _serve_app(module.app(state), host, port)
    )
    task = asyncio.ensure_future(serving)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task


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
