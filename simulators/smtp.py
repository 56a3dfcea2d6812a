"""An SMTP server that stores every message and deduplicates nothing, with faults for tests.

Messages are stored in ``<state>/mails.jsonl``, one per line, in the order they were accepted. They survive a restart.

A second port serves HTTP: ``http_port``, or any free port. Its number is in ``<state>/http_port`` once both ports
listen.

- ``GET /_simulator/stats``: the number of messages, unique messages (by Message-ID), duplicates and refused commands.
- ``GET /_simulator/messages``: the newest first. ``?limit=`` is 50 by default; ``?to=`` selects by recipient.
- ``POST /_simulator/faults`` sets faults, ``{}`` clears them. ``{"code": 451, "share": 0.2, "at": "data"}`` responds
  with the code at ``mail``, ``rcpt`` or ``data`` (the default). ``{"lose": true, "share": 0.2}`` accepts the message
  and closes the connection without a response. ``{"latency_ms": 50}`` delays the response to ``data``.

Source: RFC 5321 (as aiosmtpd implements it), RFC 3463 (enhanced status codes).
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from email import message_from_bytes
from email.parser import BytesHeaderParser
from email.policy import default as mail_policy
from pathlib import Path
from typing import Any

import orjson
from aiosmtpd.smtp import SMTP, Envelope, Session
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from infra import web
from infra.clock import now_us

_OK = "250 OK"
_TEXTS = {421: "4.3.2 closing", 450: "4.2.1 mailbox busy", 451: "4.3.0 try again later", 452: "4.2.2 mailbox full"}


class Mailbox:
    """The messages that were accepted, stored in ``file``, and the faults that tests set.

    Crash: an incomplete last line is removed by the next start; its sender had no response.
    """

    def __init__(self, file: Path, seed: int = 1) -> None:
        self._file = file
        self._random = random.Random(seed)
        self.messages: list[dict[str, Any]] = []
        self.refused = 0
        self.faults: dict[str, Any] = {}
        if file.exists():
            lines = file.read_bytes().split(b"\n")
            self.messages = [orjson.loads(line) for line in lines[:-1]]
            if lines[-1]:  # incomplete: the process was killed
                os.truncate(file, file.stat().st_size - len(lines[-1]))

    def stats(self) -> dict[str, int]:
        """Return the counters; ``duplicates`` are messages after the first with the same Message-ID."""
        unique = len(Counter(message["message_id"] for message in self.messages))
        count = len(self.messages)
        return {"messages": count, "unique": unique, "duplicates": count - unique, "refused": self.refused}

    def store(self, sender: str, recipients: list[str], content: bytes) -> str:
        """Store a message unchanged and return its queue id. It is parsed only when it is read."""
        message = {
            "id": f"Q{len(self.messages) + 1:08d}",
            "at": now_us(),
            "from": sender,
            "to": recipients,
            "message_id": str(BytesHeaderParser().parsebytes(content)["message-id"] or "").strip(),
            "content": content.decode("latin-1"),  # keeps every byte
        }
        with self._file.open("ab") as out:
            out.write(orjson.dumps(message) + b"\n")
        self.messages.append(message)
        return str(message["id"])

    def fault(self, at: str) -> str:
        """Return the error response for the command ``at`` (mail, rcpt or data), or "" to accept it."""
        if "code" not in self.faults or self.faults.get("at", "data") != at or not self._applies():
            return ""
        self.refused += 1
        code = int(self.faults["code"])
        return f"{code} {_TEXTS.get(code, f'{code // 100}.0.0 fault on demand')}"

    def loses_response(self) -> bool:
        """Return whether the response to an accepted message is not sent."""
        return bool(self.faults.get("lose")) and self._applies()

    def _applies(self) -> bool:
        return self._random.random() < float(self.faults.get("share", 1))


def parsed(stored: dict[str, Any]) -> dict[str, Any]:
    """Return a stored message with its content parsed: subject, headers, text and html."""
    message = message_from_bytes(stored["content"].encode("latin-1"), policy=mail_policy)
    body, html = message.get_body(("plain", "html")), message.get_body(("html",))
    return {name: value for name, value in stored.items() if name != "content"} | {
        "subject": str(message["subject"] or ""),
        "headers": [[name, str(value)] for name, value in message.items()],
        "text": "" if body is None else body.get_content().replace("\r\n", "\n"),
        "html": "" if html is None else html.get_content().replace("\r\n", "\n"),
    }


class _Handler:
    """The hooks of aiosmtpd, which defines their names."""

    def __init__(self, box: Mailbox) -> None:
        self._box = box

    async def handle_MAIL(  # noqa: N802
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if error := self._box.fault("mail"):
            return error
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return _OK

    async def handle_RCPT(  # noqa: N802
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if error := self._box.fault("rcpt"):
            return error
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(options)
        return _OK

    async def handle_DATA(self, server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        await asyncio.sleep(float(self._box.faults.get("latency_ms", 0)) / 1000)
        if error := self._box.fault("data"):
            return error
        queued = self._box.store(envelope.mail_from or "", list(envelope.rcpt_tos), envelope.content or b"")
        if self._box.loses_response():
            server.transport.abort()
        return f"250 2.0.0 OK: queued as {queued}"


def http_app(box: Mailbox) -> Starlette:
    """Return the HTTP endpoints as an ASGI application."""

    async def stats(_: Request) -> JSONResponse:
        return JSONResponse(box.stats())

    async def messages(request: Request) -> JSONResponse:
        limit, to = int(request.query_params.get("limit", 50)), request.query_params.get("to")
        selected = [each for each in reversed(box.messages) if to is None or to in each["to"]]
        return JSONResponse({"messages": [parsed(each) for each in selected[:limit]]})

    async def faults(request: Request) -> JSONResponse:
        box.faults = await request.json()
        return JSONResponse(box.faults)

    return Starlette(
        routes=[
            Route("/_simulator/stats", stats),
            Route("/_simulator/messages", messages),
            Route("/_simulator/faults", faults, methods=["POST"]),
        ]
    )


async def serve(host: str, port: int, state: Path, http_port: int = 0) -> None:
    """Serve SMTP on ``port`` and HTTP on ``http_port`` (0: any free port) until cancelled."""
    box = Mailbox(state / "mails.jsonl")
    loop = asyncio.get_running_loop()

    def protocol() -> SMTP:
        return SMTP(_Handler(box), enable_SMTPUTF8=True, hostname="simulator", ident="leadstream simulator", loop=loop)

    smtp_server = await loop.create_server(protocol, host, port)
    http_socket = web.listen(host, http_port)
    (state / "http_port").write_text(str(http_socket.getsockname()[1]), "utf-8")
    (state / "smtp_port").write_text(str(smtp_server.sockets[0].getsockname()[1]), "utf-8")
    try:
        await web.serve(http_app(box), http_socket)
    finally:
        smtp_server.close()
