"""The supervisor's control socket: ``start``, ``stop`` or ``restart`` one process by name, over a Unix socket.

One connection carries one command: the request is one line, ``{"do": "restart", "name": "intake"}``, and so is the
response, ``{"error": ""}``. Only the owner of the state folder can connect.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

VERBS = ("start", "stop", "restart")
_MAX_PATH_BYTES = 100  # of a Unix socket: the limit is 107 on Linux and 103 on macOS
_RESPONSE_S = 60.0

CommandHandler = Callable[[str, str], Awaitable[None]]  # (verb, name)


class CommandRefusedError(Exception):
    """The supervisor did not run the command. The message says why."""


class ControlSocket:
    """The server side of the socket.

    ``handle(verb, name)`` runs a command and raises CommandRefusedError when it cannot. ``path`` is the socket: in the
    state folder, or in a temporary folder when the path would be too long for a Unix socket.
    """

    def __init__(self, home: Path, handle: CommandHandler) -> None:
        self._handle = handle
        self._temporary_folder: Path | None = None
        self.path = home / "control.sock"
        if len(os.fsencode(self.path)) > _MAX_PATH_BYTES:
            self._temporary_folder = Path(tempfile.mkdtemp(prefix="leadstream-"))
            self.path = self._temporary_folder / "control.sock"
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Start to listen."""
        self.path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        self.path.chmod(0o600)

    def close(self) -> None:
        """Stop listening and remove the socket."""
        if self._server is not None:
            self._server.close()
        self.path.unlink(missing_ok=True)
        if self._temporary_folder is not None:
            shutil.rmtree(self._temporary_folder, ignore_errors=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        error = ""
        try:
            command = json.loads(await reader.readline())
            await self._handle(str(command["do"]), str(command["name"]))
        except (ValueError, KeyError, TypeError):
            error = 'the command is not valid; send one line of JSON, such as {"do": "restart", "name": "intake"}'
        except CommandRefusedError as refused:
            error = str(refused)
        writer.write(json.dumps({"error": error}).encode() + b"\n")
        writer.close()


def send_command(path: str | Path, verb: str, name: str) -> None:
    """Send one command for the process ``name`` to the supervisor's socket ``path`` and wait until it has run.

    A started process is not ready yet when this returns.

    Raises:
        CommandRefusedError: the supervisor refused the command, or did not respond within 60 seconds.

    """
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_RESPONSE_S)
            connection.connect(str(path))
            connection.sendall(json.dumps({"do": verb, "name": name}).encode() + b"\n")
            line = connection.makefile("rb").readline() or b'{"error": "the supervisor ended before it responded"}'
            response: dict[str, Any] = json.loads(line)
    except OSError as error:
        raise CommandRefusedError(f"the supervisor does not respond: {error}; see `leadstream status`") from error
    if response["error"]:
        raise CommandRefusedError(response["error"])
