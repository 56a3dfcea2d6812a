"""E-mail by SMTP: one message to one person, as HTML with a plain text alternative derived from it.

Sources: RFC 5321 (4.2.1 and 4.2.2: reply codes; 4.5.3.2.6 and 6.1: a lost response to the end of the data), RFC 3463
(enhanced codes), RFC 5322 (3.6.4: Message-ID), RFC 6531 (SMTPUTF8), RFC 4954 (AUTH codes).

Crash: SMTP has no idempotency key. If the response to the end of the data is lost, or the process crashes before the
result is stored, it is unknown whether the server accepted the mail. By default it is then sent again, as mail relays
do (RFC 5321, 6.1): at-least-once. Both mails have the same Message-ID (``<message_id@domain>``), so many mailboxes show
one mail. With ``LEADSTREAM_CHANNEL_EMAIL_WHEN_UNSURE=hold`` it is at-most-once, see :mod:`sinks.messages.delivery`.

Guarantees: no value can add a header. An address must be a single one, and EmailMessage rejects line breaks. But it
decodes encoded words in values (``=?utf-8?q?=0D=0ABcc:...?=``) with the line breaks in them. So encoded words are
broken up, and the finished headers are checked.
"""

from __future__ import annotations

import re
from binascii import b2a_qp
from contextlib import suppress
from dataclasses import replace
from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

import aiosmtplib
from pydantic import Field, SecretStr, field_validator

from infra.errors import Verdict
from infra.outcomes import Reason
from schemas.addresses import normal_domain
from sinks.messages import BeforeSending, DeliveryConfig, OutgoingMessage, SendFailed, SendResult, Sent, Unsure
from sinks.messages.plain_text import plain_text

NAME = "email"


class Config(DeliveryConfig):
    """Settings LEADSTREAM_CHANNEL_EMAIL_*."""

    url: str = Field(
        pattern=r"^smtps?://[^/@\s]+$",
        description="SMTP server, smtp://host:port or smtps://host:port. smtps: TLS from the start. smtp: STARTTLS, "
        "required if a password is set, otherwise if the server offers it.",
    )
    from_address: str = Field(
        "Leadstream <leads@example.com>",
        min_length=3,
        description="Default sender address, for campaigns that set no `from`.",
    )
    ca: Path | None = Field(
        None, description="PEM file of the authorities that the server's certificate is checked against."
    )
    username: str = Field("", description="User name for the SMTP server. Empty: no login.")
    password: SecretStr = Field(SecretStr(""), description="Password for the SMTP server.")

    @field_validator("ca")
    @classmethod
    def _is_file(cls, file: Path | None) -> Path | None:
        if file is not None and not file.is_file():
            raise ValueError(f"there is no file {file}")
        return file

    @field_validator("from_address")
    @classmethod
    def _is_address(cls, text: str) -> str:
        parse_sender(text)
        return text


# Meaning of an error by reply code. For other codes: 4xx is temporary, 5xx permanent. A wait of 0: by backoff.
_CODES = {
    421: SendFailed(Verdict.PAUSE, Reason.UNAVAILABLE),  # the server closes the connection, whatever the mail
    452: SendFailed(Verdict.RETRY, Reason.QUOTA),  # the mailbox or the server's storage is full
    454: SendFailed(Verdict.PAUSE, Reason.UNAUTHORIZED),
    530: SendFailed(Verdict.PAUSE, Reason.UNAUTHORIZED, 60),
    534: SendFailed(Verdict.PAUSE, Reason.UNAUTHORIZED, 60),
    535: SendFailed(Verdict.PAUSE, Reason.UNAUTHORIZED, 60),
    538: SendFailed(Verdict.PAUSE, Reason.UNAUTHORIZED, 60),
}
_TEMPORARY = SendFailed(Verdict.RETRY, Reason.UNAVAILABLE)
_REFUSED = SendFailed(Verdict.DEAD, Reason.REJECTED)
_SENDER_REFUSED = SendFailed(Verdict.RETRY, Reason.MISCONFIGURED, 60)  # the cause is the campaign's `from`
_NO_CONNECTION = SendFailed(Verdict.PAUSE, Reason.UNAVAILABLE)
_NO_RESPONSE = SendFailed(Verdict.PAUSE, Reason.TIMEOUT)
_NOT_SUPPORTED = SendFailed(Verdict.PAUSE, Reason.MISCONFIGURED, 60)  # such as a server without the required STARTTLS
# What the standard library's parser of headers raises for invalid values: all of these have been seen.
_INVALID = (ValueError, MessageError, LookupError, AttributeError, RecursionError)
_PERMANENT = 500
_SERVER_CLOSES = 421
_ADDRESS = re.compile(r"""([^\s@,;:<>()\[\]\\"]{1,64})@([^\s@,;:<>()\[\]\\"]{1,253})""")
_ENHANCED = re.compile(r"\b[245]\.\d{1,3}\.\d{1,3}\b")
_HEADERS = SMTP.clone(cte_type="7bit")  # does not require 8BITMIME
_UTF8_HEADERS = _HEADERS.clone(utf8=True)
# RFC 2046, 5.1.4. The boundary occurs in no part: quoted-printable text never contains "=_" (RFC 2045, 6.7).
_ALTERNATIVE = b'\r\nMIME-Version: 1.0\r\nContent-Type: multipart/alternative; boundary="=_leadstream"\r\n'
_PART = (
    b"\r\n--=_leadstream\r\nContent-Type: text/%s; charset=utf-8\r\n"
    b"Content-Transfer-Encoding: quoted-printable\r\n\r\n%s"
)
_END = b"\r\n--=_leadstream--\r\n"


def connect(config: Config) -> Email:
    """Return the channel. Connections are opened when they are first needed, and reused."""
    return Email(config)


class Email:
    """A :class:`sinks.messages.Channel` for e-mail."""

    name = NAME
    dedupes = False

    def __init__(self, config: Config) -> None:
        self._config = config
        self._idle: list[aiosmtplib.SMTP] = []

    async def send(self, message: OutgoingMessage, before_sending: BeforeSending) -> SendResult:
        """Send one mail, over an open connection if there is one."""
        try:
            sender, to = parse_sender(message.sender or self._config.from_address), parse_address(message.to)
            mail = compose(message, sender, to)
        except _INVALID as error:
            return SendFailed(Verdict.DEAD, Reason.REJECTED, detail=type(error).__name__)
        while self._idle:
            result = await self._converse(self._idle.pop(), sender, to, mail, before_sending)
            if result is not _NO_CONNECTION:  # otherwise the server has closed this connection: try the next
                return result
        try:
            client = await self._connect()
        except (aiosmtplib.SMTPException, OSError) as error:
            return _connect_failed(error)
        return await self._converse(client, sender, to, mail, before_sending)

    async def close(self) -> None:
        """Close all connections with QUIT."""
        while self._idle:
            client = self._idle.pop()
            with suppress(aiosmtplib.SMTPException, OSError):
                await client.quit(timeout=2)
            client.close()

    async def _converse(
        self, client: aiosmtplib.SMTP, sender: Address, to: Address, mail: bytes, before_sending: BeforeSending
    ) -> SendResult:
        started = keep = False
        needs_utf8 = _needs_utf8(sender, to)
        encoding, options = ("utf-8", ["SMTPUTF8"]) if needs_utf8 else ("ascii", [])
        try:
            if needs_utf8 and not client.supports_extension("smtputf8"):
                keep = True
                return SendFailed(Verdict.DEAD, Reason.REJECTED, detail="SMTPUTF8")
            await client.mail(sender.addr_spec, options=options, encoding=encoding)
            await client.rcpt(to.addr_spec, encoding=encoding)
            await before_sending()
            started = True
            response = await client.data(mail)
            keep = True
            return Sent("".join(c for c in response.message if c.isprintable())[:200])
        except aiosmtplib.SMTPResponseException as error:
            keep = error.code != _SERVER_CLOSES and await _reset(client)
            return _classify(error)
        except aiosmtplib.SMTPTimeoutError:
            return Unsure(Reason.TIMEOUT) if started else _NO_RESPONSE
        except (aiosmtplib.SMTPServerDisconnected, OSError):
            return Unsure(Reason.UNAVAILABLE) if started else _NO_CONNECTION
        finally:
            if keep and client.is_connected:
                self._idle.append(client)
            else:
                client.close()

    async def _connect(self) -> aiosmtplib.SMTP:
        config, url = self._config, urlsplit(self._config.url)
        password = config.password.get_secret_value()
        secure = url.scheme == "smtps"
        client = aiosmtplib.SMTP(
            hostname=url.hostname,
            port=url.port,
            username=config.username or None,
            password=password or None,
            timeout=config.timeout_s,
            use_tls=secure,
            cert_bundle=None if config.ca is None else str(config.ca),
            start_tls=None if secure or not password else True,
        )
        await client.connect()
        if client.is_ehlo_or_helo_needed:
            await client.ehlo()
        return client


def compose(message: OutgoingMessage, sender: Address, to: Address) -> bytes:
    """Return the mail as bytes.

    Raises:
        One of _INVALID: a value is not valid in a header, or would add a header.

    """
    mail = EmailMessage(policy=_UTF8_HEADERS if _needs_utf8(sender, to) else _HEADERS)
    mail["From"] = sender
    mail["To"] = to
    mail["Subject"] = message.subject.replace("=?", "= ?")
    mail["Date"] = formatdate(usegmt=True)
    mail["Message-ID"] = f"<{message.message_id}@{sender.domain}>"
    mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: suppresses out-of-office replies
    head = mail.as_bytes().partition(b"\r\n\r\n")[0]
    names = [line.partition(b":")[0].decode() for line in head.split(b"\r\n")]
    if sorted(name for name in names if name[:1] not in " \t") != sorted(mail.keys()):
        raise ValueError("a value adds a header")
    return b"".join((head, _ALTERNATIVE, _part("plain", plain_text(message.body)), _part("html", message.body), _END))


def _part(subtype: str, text: str) -> bytes:
    """Return one part of the alternative. EmailMessage would do the same, but takes 1 ms to parse its own headers."""
    lines = b"\n".join(text.encode().splitlines()) + b"\n"
    printable = b2a_qp(lines, istext=True).replace(b"\n", b"\r\n")
    return _PART % (subtype.encode(), printable)


@lru_cache(maxsize=256)
def parse_sender(text: str) -> Address:
    """Return the address in ``text``, with its display name if it has one.

    Raises:
        ValueError: ``text`` is not exactly one address.

    """
    header = None
    with suppress(*_INVALID):
        header = SMTP.header_factory("from", text) if text.isprintable() else None
    if header is None or header.defects or len(header.addresses) != 1 or not header.addresses[0].domain:
        raise ValueError("must be one address, such as Example Ltd <hello@example.com>")
    address: Address = header.addresses[0]
    return parse_address(address.addr_spec, address.display_name.replace("=?", "= ?"))


def parse_address(text: str, display_name: str = "") -> Address:
    """Return ``text``, an address without display name, with its domain in ASCII.

    Raises:
        ValueError: ``text`` is not exactly one address.

    """
    found = _ADDRESS.fullmatch(text.strip())
    if found is None or not text.isprintable() or "=?" in text:
        raise ValueError("must be one address, such as hello@example.com")
    local, domain = found.groups()
    return Address(display_name, local, normal_domain(domain))


def _needs_utf8(sender: Address, to: Address) -> bool:
    return not (sender.addr_spec + to.addr_spec).isascii()


async def _reset(client: aiosmtplib.SMTP) -> bool:
    """Reset the connection for another mail; return whether that succeeded."""
    try:
        await client.rset()
    except (aiosmtplib.SMTPException, OSError):
        return False
    return True


def _classify(error: aiosmtplib.SMTPResponseException) -> SendFailed | Unsure:
    if error.code < 400:  # noqa: PLR2004 - not an error code: an unexpected response
        return Unsure(Reason.UNAVAILABLE)
    failed = _CODES.get(error.code)
    if failed is None and isinstance(error, aiosmtplib.SMTPSenderRefused) and error.code >= _PERMANENT:
        failed = _SENDER_REFUSED
    if failed is None:
        failed = _REFUSED if error.code >= _PERMANENT else _TEMPORARY
    enhanced = _ENHANCED.search(error.message)
    return replace(failed, detail=f"{error.code} {enhanced[0]}" if enhanced else str(error.code))


def _connect_failed(error: Exception) -> SendFailed:
    """Return the result of a failed attempt to connect. The mail did not cause it, whatever the code."""
    if isinstance(error, aiosmtplib.SMTPResponseException):
        return replace(_CODES.get(error.code, _NO_CONNECTION), detail=str(error.code))
    if isinstance(error, aiosmtplib.SMTPTimeoutError | TimeoutError):
        return _NO_RESPONSE
    return _NO_CONNECTION if isinstance(error, OSError) else replace(_NOT_SUPPORTED, detail=type(error).__name__)
