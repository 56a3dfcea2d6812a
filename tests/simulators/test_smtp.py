"""The SMTP simulator stores every message, deduplicates nothing and has faults for tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from email.message import EmailMessage
from pathlib import Path

import aiosmtplib
import httpx
import pytest

from simulators.smtp import serve
from tests.conftest import eventually


@asynccontextmanager
async def running(state: Path) -> AsyncIterator[tuple[int, httpx.AsyncClient]]:
    for name in ("http_port", "smtp_port"):
        (state / name).unlink(missing_ok=True)
    task = asyncio.create_task(serve("127.0.0.1", 0, state))
    try:
        await eventually((state / "smtp_port").exists)
        http = f"http://127.0.0.1:{(state / 'http_port').read_text()}"
        async with httpx.AsyncClient(base_url=http) as client:
            yield int((state / "smtp_port").read_text()), client
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def mail(message_id: str = "<1@example.com>", subject: str = "Hello") -> EmailMessage:
    made = EmailMessage()
    made["From"], made["To"], made["Subject"] = "us@example.com", "ada@example.com", subject
    made["Message-ID"] = message_id
    made.set_content("Grüße\n.\nafter a dot")
    return made


async def send(port: int, *mails: EmailMessage) -> None:
    async with aiosmtplib.SMTP(hostname="127.0.0.1", port=port) as client:
        for each in mails:
            await client.send_message(each)


async def test_messages_and_their_duplicates_by_message_id_survive_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path) as (port, http):
        await send(port, mail(), mail(), mail("<2@example.com>", "Zweite Grüße"))
        stats = {"messages": 3, "unique": 2, "duplicates": 1, "refused": 0}
        assert (await http.get("/_simulator/stats")).json() == stats
        (newest,) = (await http.get("/_simulator/messages?limit=1")).json()["messages"]
        assert (newest["subject"], newest["to"]) == ("Zweite Grüße", ["ada@example.com"])
        assert newest["text"] == "Grüße\n.\nafter a dot\n"
        assert (await http.get("/_simulator/messages?to=eve@example.com")).json()["messages"] == []
    async with running(tmp_path) as (_, http):
        assert (await http.get("/_simulator/stats")).json() == stats


@pytest.mark.parametrize(
    ("at", "error"),
    [
        ("mail", aiosmtplib.SMTPSenderRefused),
        ("rcpt", aiosmtplib.SMTPRecipientsRefused),
        ("data", aiosmtplib.SMTPDataError),
    ],
)
async def test_a_fault_applies_at_its_command_and_stores_nothing(
    tmp_path: Path, at: str, error: type[Exception]
) -> None:
    async with running(tmp_path) as (port, http):
        await http.post("/_simulator/faults", json={"code": 451, "at": at})
        with pytest.raises(error):
            await send(port, mail())
        assert (await http.get("/_simulator/stats")).json()["messages"] == 0
        await http.post("/_simulator/faults", json={})
        await send(port, mail())
        assert (await http.get("/_simulator/stats")).json() == {
            "messages": 1,
            "unique": 1,
            "duplicates": 0,
            "refused": 1,
        }


async def test_a_fault_applies_to_a_share_of_the_messages(tmp_path: Path) -> None:
    async with running(tmp_path) as (port, http):
        await http.post("/_simulator/faults", json={"code": 451, "share": 0.5})
        for i in range(40):
            with suppress(aiosmtplib.SMTPDataError):
                await send(port, mail(f"<{i}@example.com>"))
        stats = (await http.get("/_simulator/stats")).json()
        assert stats["messages"] + stats["refused"] == 40
        assert 5 < stats["messages"] < 35


async def test_a_message_with_a_lost_response_is_stored(tmp_path: Path) -> None:
    async with running(tmp_path) as (port, http):
        await http.post("/_simulator/faults", json={"lose": True})
        with pytest.raises(aiosmtplib.SMTPServerDisconnected):
            await send(port, mail())
        assert (await http.get("/_simulator/stats")).json()["messages"] == 1
