"""The supervisor's door: ``start``, ``stop`` or ``restart`` one process by its name, over a Unix socket.

One line each way: ``{"do": "restart", "name": "intake"}`` -> ``{"error": ""}``. The socket is the owner's alone.
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
_LONGEST_PATH = 100  # of a Unix socket: 107 bytes on Linux, 103 elsewhere
_ANSWER_S = 60.0

Do = Callable[[str, str], Awaitable[None]]


class Refused(Exception):  # noqa: N818 - the supervisor's answer
    """The supervisor cannot do what was asked; the message says why."""


class Door:
    """Serves the socket. ``do(verb, name)`` raises Refused where it cannot."""

    def __init__(self, home: Path, do: Do) -> None:
        self._do = do
        self._own: Path | None = None
        self.path = home / "control.sock"
        if len(os.fsencode(self.path)) > _LONGEST_PATH:
            self._own = Path(tempfile.mkdtemp(prefix="leadstream-"))
            self.path = self._own / "control.sock"
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Begin to listen."""
        self.path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._answer, self.path)
        self.path.chmod(0o600)

    def close(self) -> None:
        """Stop listening and leave no file."""
        if self._server is not None:
            self._server.close()
        self.path.unlink(missing_ok=True)
        if self._own is not None:
            shutil.rmtree(self._own, ignore_errors=True)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        error = ""
        try:
            asked = json.loads(await reader.readline())
            await self._do(str(asked["do"]), str(asked["name"]))
        except (ValueError, KeyError, TypeError):
            error = 'a question is one line: {"do": "restart", "name": "intake"}'
        except Refused as refused:
            error = str(refused)
        writer.write(json.dumps({"error": error}).encode() + b"\n")
        writer.close()


def ask(path: str | Path, verb: str, name: str) -> None:
    """Have the supervisor do ``verb`` to the process ``name``; returns when it is done (started, not yet ready).

    Raises:
        Refused: the supervisor's reason, or that it is not there.

    """
    try:
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(_ANSWER_S)
            line.connect(str(path))
            line.sendall(json.dumps({"do": verb, "name": name}).encode() + b"\n")
            answer: dict[str, Any] = json.loads(line.makefile("rb").readline() or b'{"error": "the supervisor ended"}')
    except OSError as error:
        raise Refused(f"the supervisor does not answer: {error}") from error
    if answer["error"]:
        raise Refused(answer["error"])
