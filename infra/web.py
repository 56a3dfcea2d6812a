"""Serves HTTP with uvicorn on a bound socket. The signal handlers and the log configuration of uvicorn are disabled."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no signal handlers: uvicorn's end the process by the signal instead of with an exit code."""
        yield


def listen(host: str, port: int, *, backlog: int = 2048) -> socket.socket:
    """Return a socket that is bound to ``host``:``port`` (0: any free port) and accepts connections.

    Raises:
        OSError: the address is in use, or does not belong to this machine.

    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=backlog)


async def serve(app: ASGIApp, listener: socket.socket, *, lifespan: bool = False, grace_s: float = 10) -> None:
    """Serve ``app`` on ``listener`` until cancelled, then close ``listener``.

    After a cancellation it accepts no connections and gives requests in progress ``grace_s`` seconds to finish.
    ``lifespan``: the application has start-up and shutdown handlers.

    Raises:
        RuntimeError: the server ended without a cancellation, such as after a failed (and logged) start-up.

    """
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        loop="none",
        lifespan="on" if lifespan else "off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(grace_s),
    )
    server = _Server(config)
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    try:
        await asyncio.shield(serving)
    except asyncio.CancelledError:
        server.should_exit = True
        await serving
        raise
    finally:
        listener.close()
    raise RuntimeError("the HTTP server ended unexpectedly; the log has the reason")
