"""E-mails as an SMTP server receives them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from email import message_from_bytes
from email.policy import default
from typing import Any

import pytest
from pydantic import ValidationError

from infra.errors import Verdict
from infra.outcomes import Reason
from infra.settings import Settings, SettingsError
from sinks.messages import OutgoingMessage, SendFailed, SendResult, Sent, Unsure, email
from sinks.messages.plain_text import plain_text

pytestmark = pytest.mark.integration


async def nothing() -> None:
    return


def message(**changes: Any) -> OutgoingMessage:
    given = {"message_id": "0" * 32, "to": "ada@example.com", "sender": "", "subject": "Hello", "body": "<p>Hello</p>"}
    return OutgoingMessage(**given | changes)


@dataclass
class Wire:
    """A proxy between the channel and the server that counts connections and can break them."""

    port: int = 0
    opened: int = 0
    open_ends: list[asyncio.StreamWriter] = field(default_factory=list)

    def break_all(self) -> None:
        for end in self.open_ends:
            end.transport.abort()
        self.open_ends.clear()


@asynccontextmanager
async def counting(server_port: int) -> AsyncIterator[Wire]:
    wire = Wire()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire.opened += 1
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", server_port)
        wire.open_ends += [writer, server_writer]
        await asyncio.gather(carry(reader, server_writer), carry(server_reader, writer))

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        wire.port = server.sockets[0].getsockname()[1]
        yield wire
        wire.break_all()


async def send(world: Any, **changes: Any) -> SendResult:
    result: SendResult = await world.channel().send(message(**changes), nothing)
    return result


async def test_a_mail_is_html_with_a_plain_text_and_deterministic_headers(world: Any) -> None:
    body = '<style>p {}</style><p>Hello Ada &amp; all,</p><p>see <a href="https://example.com/x">here</a>.</p>'
    assert isinstance(await send(world, body=body, subject="Grüße, Ada"), Sent)
    (mail,) = await world.mails()
    assert (mail["from"], mail["to"]) == ("us@example.com", ["ada@example.com"])
    headers = dict(mail["headers"])
    assert headers["From"] == "Us <us@example.com>"
    assert headers["Subject"] == "Grüße, Ada"
    assert headers["Message-ID"] == f"<{'0' * 32}@example.com>"
    assert mail["text"] == "Hello Ada & all,\n\nsee here (https://example.com/x).\n"
    assert mail["html"].strip() == body


@pytest.mark.parametrize(
    "text",
    [
        *("", ".\n..\nFrom me\n", "x" * 2000, "Grüße \U0001f600 " * 300, "trailing \t\nspace ", "a\r\nb\rc\n\n\nd"),
        *("--=_leadstream\n--=_leadstream--\n", "=3D =\n=_", "a\x0bb\x0cc\u2028d"),
    ],
)
async def test_any_text_arrives_unchanged_in_lines_that_any_server_accepts(world: Any, text: str) -> None:
    sender, to = email.parse_sender("us@example.com"), email.parse_address("ada@example.com")
    written = email.compose(message(body=text), sender, to)
    lines = written.split(b"\r\n")
    assert all(len(line) <= 78 and line.isascii() and b"\r" not in line and b"\n" not in line for line in lines)
    assert isinstance(await send(world, body=text), Sent)
    (mail,) = await world.mails()
    assert mail["html"].rstrip("\n") == text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n")
    parsed = message_from_bytes(written, policy=default)
    assert [part.get_content_type() for part in parsed.walk()] == ["multipart/alternative", "text/plain", "text/html"]
    assert not [part.defects for part in parsed.walk() if part.defects]


async def test_a_campaigns_own_sender(world: Any) -> None:
    await send(world, sender="Grace <grace@sales.example.com>")
    (mail,) = await world.mails()
    assert mail["from"] == "grace@sales.example.com"
    assert mail["message_id"].endswith("@sales.example.com>")


@pytest.mark.parametrize(
    "changes",
    [
        {"subject": "Hello\r\nBcc: eve@example.com"},
        {"subject": "Hello\nBcc: eve@example.com"},
        {"subject": "Hello\r\n\r\n<p>another body</p>"},
        {"to": "ada@example.com\r\nBcc: eve@example.com"},
        {"to": "ada@example.com\nRCPT TO:<eve@example.com>"},
        {"to": "ada@example.com>\r\nRCPT TO:<eve@example.com"},
        {"to": "ada@example.com, eve@example.com"},
        {"to": "ada@example.com,eve@example.com"},
        {"to": "Ada <ada@example.com>, eve@example.com"},
        {"to": "=?utf-8?q?ada=0D=0ABcc:_eve?=@example.com"},
        {"to": "@example.com"},
        {"to": "ada"},
        {"to": "ada@"},
        {"to": ""},
        {"to": "ada@exa mple.com"},
        {"sender": "us@example.com\r\nBcc: eve@example.com"},
        {"sender": "us@example.com, eve@example.com"},
    ],
)
async def test_no_value_adds_a_header_or_a_recipient(world: Any, changes: dict[str, str]) -> None:
    result = await send(world, **changes)
    assert isinstance(result, SendFailed), result
    assert (result.verdict, result.reason) == (Verdict.DEAD, Reason.REJECTED)
    assert "example" not in result.detail
    assert (await world.stats())["messages"] == 0


@pytest.mark.parametrize(
    "subject",
    [
        "=?utf-8?q?Hello=0D=0ABcc:_eve@example.com?=",
        "=?utf-8?b?SGVsbG8NCkJjYzogZXZlQGV4YW1wbGUuY29t?=",
        "=?utf-8?q?a?= =?utf-8?q?=0D=0ABcc:_eve@example.com?= ü",
        "==??utf-8?q?=0ABcc:_eve@example.com?=",
        "Hello " * 60 + "Bcc: eve@example.com",
        "ü" * 300 + " Bcc: eve@example.com",
    ],
)
def test_hostile_values_add_no_headers(subject: str) -> None:
    sender, to = email.parse_sender('"a, b; c" <us@example.com>'), email.parse_address("ada@example.com")
    parsed = message_from_bytes(email.compose(message(subject=subject), sender, to), policy=default)
    assert parsed["bcc"] is None
    assert [a.addr_spec for a in parsed["from"].addresses] == ["us@example.com"]
    assert [a.addr_spec for a in parsed["to"].addresses] == ["ada@example.com"]


async def test_addresses_beyond_ascii(world: Any) -> None:
    assert isinstance(await send(world, to="ada@bücher.example"), Sent)
    assert isinstance(await send(world, to="jürgen@example.com"), Sent)
    first, second = sorted([mail["to"][0] for mail in await world.mails()])
    assert (first, second) == ("ada@xn--bcher-kva.example", "jürgen@example.com")


async def test_connections_are_reused_and_a_closed_one_is_replaced(world: Any) -> None:
    async with counting(world.smtp_port) as wire:
        channel = world.channel(url=f"smtp://127.0.0.1:{wire.port}")
        for _ in range(2):
            assert isinstance(await channel.send(message(), nothing), Sent)
        assert wire.opened == 1
        wire.break_all()
        assert isinstance(await channel.send(message(), nothing), Sent)
        assert wire.opened == 2
        assert (await world.stats())["messages"] == 3
        await world.faults(code=451)
        assert isinstance(await channel.send(message(), nothing), SendFailed)
        await world.faults()
        assert isinstance(await channel.send(message(), nothing), Sent)
        assert wire.opened == 2  # a rejected mail does not close the connection
        await channel.close()


@pytest.mark.parametrize(
    ("code", "at", "verdict", "reason"),
    [
        (421, "rcpt", Verdict.PAUSE, Reason.UNAVAILABLE),
        (450, "rcpt", Verdict.RETRY, Reason.UNAVAILABLE),
        (451, "data", Verdict.RETRY, Reason.UNAVAILABLE),
        (452, "rcpt", Verdict.RETRY, Reason.QUOTA),
        (530, "mail", Verdict.PAUSE, Reason.UNAUTHORIZED),
        (550, "rcpt", Verdict.DEAD, Reason.REJECTED),
        (554, "data", Verdict.DEAD, Reason.REJECTED),
        (550, "mail", Verdict.RETRY, Reason.MISCONFIGURED),
    ],
)
async def test_reply_codes_are_classified(world: Any, code: int, at: str, verdict: Verdict, reason: Reason) -> None:
    await world.faults(code=code, at=at)
    result = await send(world)
    assert isinstance(result, SendFailed)
    assert (result.verdict, result.reason) == (verdict, reason)
    assert result.detail.startswith(f"{code} ")
    await world.faults()
    assert isinstance(await send(world), Sent)


async def test_a_timeout_before_the_message_is_a_failure_and_after_it_unsure(world: Any) -> None:
    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(mute, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        channel = world.channel(url=f"smtp://127.0.0.1:{port}", timeout_s=0.2)
        result = await channel.send(message(), nothing)
    assert isinstance(result, SendFailed)
    assert (result.verdict, result.reason) == (Verdict.PAUSE, Reason.TIMEOUT)
    await world.faults(latency_ms=2000)
    assert await world.channel(timeout_s=0.2).send(message(), nothing) == Unsure(Reason.TIMEOUT)


async def test_a_password_is_never_sent_unencrypted(world: Any) -> None:
    result = await world.channel(username="us", password="secret").send(message(), nothing)
    assert isinstance(result, SendFailed)
    assert (result.verdict, result.reason) == (Verdict.PAUSE, Reason.MISCONFIGURED)
    assert (await world.stats())["messages"] == 0


def test_settings_are_validated_and_secrets_are_not_shown() -> None:
    given = {
        "LEADSTREAM_CHANNEL_EMAIL_URL": "http://example.com",
        "LEADSTREAM_CHANNEL_EMAIL_FROM_ADDRESS": "nobody",
        "LEADSTREAM_CHANNEL_EMAIL_SENDER": "x",
    }
    with pytest.raises(SettingsError) as caught:
        Settings.load(given).section("channel_email", email.Config)
    assert all(name in str(caught.value) for name in given)
    assert "secret" not in repr(email.Config(url="smtp://h:1", password="secret"))
    with pytest.raises(ValidationError):
        email.Config(url="smtp://user:secret@h:1")


def test_plain_text() -> None:
    assert plain_text("") == "\n"
    assert plain_text("<ul><li>a</li><li>b &lt; c</li></ul><script>x</script>d<br>e") == "a\n\nb < c\n\nd\ne\n"
