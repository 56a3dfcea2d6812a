"""An SMTP server that keeps what it is sent and dedupes nothing, with faults on demand.

Sources: RFC 5321 (as aiosmtpd speaks it), RFC 3463 (enhanced codes). Mails are kept in ``<state>/mails.jsonl``, one a
line, in the order they were taken, and are there again after a restart.

A second port speaks HTTP; it is ``http_port``, or any free one, and stands in ``<state>/http_port`` once both listen:
``GET /_simulator/stats`` counts messages, unique (by Message-ID), duplicates, and refused; ``GET /_simulator/messages``
gives the newest first (``?limit=``, 50; ``?to=`` an address); ``POST /_simulator/faults`` sets faults, ``{}`` ends
them: ``{"code": 451, "share": 0.2, "at": "data"}`` answers so at mail, rcpt or data (the default); ``{"lose": true,
"share": 0.2}`` takes the mail and closes the connection without an answer; ``{"latency_ms": 50}`` answers later.
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
    """The mails that were taken, and the faults that a test asked for."""

    def __init__(self, file: Path, seed: int = 1) -> None:
        self._file = file
        self._random = random.Random(seed)
        self.mails: list[dict[str, Any]] = []
        self.refused = 0
        self.faults: dict[str, Any] = {}
        if file.exists():
            lines = file.read_bytes().split(b"\n")
            self.mails = [orjson.loads(line) for line in lines[:-1]]
            if lines[-1]:  # cut by a crash: its sender has no answer
                os.truncate(file, file.stat().st_size - len(lines[-1]))

    def stats(self) -> dict[str, int]:
        """Return what was counted; ``duplicates``: mails beyond the first of a Message-ID."""
        unique = len(Counter(mail["message_id"] for mail in self.mails))
        count = len(self.mails)
        return {"messages": count, "unique": unique, "duplicates": count - unique, "refused": self.refused}

    def keep(self, sender: str, recipients: list[str], content: bytes) -> str:
        """Keep a mail as it came and return its queue id; only who looks at it pays for reading it."""
        mail = {
            "id": f"Q{len(self.mails) + 1:08d}",
            "at": now_us(),
            "from": sender,
            "to": recipients,
            "message_id": str(BytesHeaderParser().parsebytes(content)["message-id"] or "").strip(),
            "content": content.decode("latin-1"),  # any bytes, and they come back
        }
        with self._file.open("ab") as out:
            out.write(orjson.dumps(mail) + b"\n")
        self.mails.append(mail)
        return str(mail["id"])

    def fault(self, at: str) -> str:
        """Return the answer that is to be given ``at`` this command instead of taking it, or nothing."""
        if "code" not in self.faults or self.faults.get("at", "data") != at or not self._hit():
            return ""
        self.refused += 1
        code = int(self.faults["code"])
        return f"{code} {_TEXTS.get(code, f'{code // 100}.0.0 fault on demand')}"

    def loses(self) -> bool:
        """Return whether the answer about a mail that was taken gets lost."""
        return bool(self.faults.get("lose")) and self._hit()

    def _hit(self) -> bool:
        return self._random.random() < float(self.faults.get("share", 1))


def read(mail: dict[str, Any]) -> dict[str, Any]:
    """Return a kept mail with its content taken apart."""
    parsed = message_from_bytes(mail["content"].encode("latin-1"), policy=mail_policy)
    body, html = parsed.get_body(("plain", "html")), parsed.get_body(("html",))
    return {name: value for name, value in mail.items() if name != "content"} | {
        "subject": str(parsed["subject"] or ""),
        "headers": [[name, str(value)] for name, value in parsed.items()],
        "text": "" if body is None else body.get_content().replace("\r\n", "\n"),
        "html": "" if html is None else html.get_content().replace("\r\n", "\n"),
    }


class _Handler:
    """aiosmtpd's hooks; the names are its."""

    def __init__(self, box: Mailbox) -> None:
        self._box = box

    async def handle_MAIL(  # noqa: N802
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if refusal := self._box.fault("mail"):
            return refusal
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return _OK

    async def handle_RCPT(  # noqa: N802
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if refusal := self._box.fault("rcpt"):
            return refusal
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(options)
        return _OK

    async def handle_DATA(self, server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        await asyncio.sleep(float(self._box.faults.get("latency_ms", 0)) / 1000)
        if refusal := self._box.fault("data"):
            return refusal
        queued = self._box.keep(envelope.mail_from or "", list(envelope.rcpt_tos), envelope.content or b"")
        if self._box.loses():
            server.transport.abort()
        return f"250 2.0.0 OK: queued as {queued}"


def inbox(box: Mailbox) -> Starlette:
    """Return the HTTP side."""

    async def stats(_: Request) -> JSONResponse:
        return JSONResponse(box.stats())

    async def messages(request: Request) -> JSONResponse:
        limit, to = int(request.query_params.get("limit", 50)), request.query_params.get("to")
        chosen = [mail for mail in reversed(box.mails) if to is None or to in mail["to"]]
        return JSONResponse({"messages": [read(mail) for mail in chosen[:limit]]})

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
    """Serve SMTP on ``port`` and HTTP on ``http_port`` (0: any free one) until cancelled."""
    box = Mailbox(state / "mails.jsonl")
    loop = asyncio.get_running_loop()

    def protocol() -> SMTP:
        return SMTP(_Handler(box), enable_SMTPUTF8=True, hostname="simulator", ident="leadstream simulator", loop=loop)

    mail = await loop.create_server(protocol, host, port)
    door = web.listen(host, http_port)
    (state / "http_port").write_text(str(door.getsockname()[1]), "utf-8")
    (state / "smtp_port").write_text(str(mail.sockets[0].getsockname()[1]), "utf-8")
    try:
        await web.serve(inbox(box), door)
    finally:
        mail.close()
