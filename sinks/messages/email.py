"""E-mail by SMTP: one message to one person, HTML with a plain text made of it.

Sources: RFC 5321 (4.2.1 and 4.2.2 reply codes; 4.5.3.2.6 and 6.1 what a lost answer to the final dot means), RFC 3463
(enhanced codes), RFC 5322 (3.6.4 Message-ID), RFC 6531 (SMTPUTF8), RFC 4954 (AUTH codes).

SMTP has no idempotency key: when the answer to the final dot is lost, or the process crashes before it is written,
nobody can know whether the mail was accepted. Like every relay (RFC 5321 6.1) we then send it again: at-least-once. It
has the same Message-ID, which is deterministic (``<message_id@domain>``) and by which many mailboxes show one mail.
With ``LEADSTREAM_CHANNEL_EMAIL_WHEN_UNSURE=hold`` it is at-most-once instead: the message fails as ``unsure``, see
:mod:`sinks.messages.delivery`.

No value adds a header: addresses are single ones, EmailMessage refuses line ends, and because it decodes encoded words
that a value brings (``=?utf-8?q?=0D=0ABcc:...?=``) and writes the line ends in them, those are broken up and the
finished headers are looked at.
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
    """LEADSTREAM_CHANNEL_EMAIL_*. smtp: STARTTLS where it is offered, with a password always; smtps: TLS at once."""

    url: str = Field(pattern=r"^smtps?://[^/@\s]+$", description="smtp://host:port or smtps://host:port.")
    from_address: str = Field("Leadstream <leads@example.com>", min_length=3, description="If a campaign has none.")
    username: str = ""
    password: SecretStr = SecretStr("")

    @field_validator("from_address")
    @classmethod
    def _is_address(cls, text: str) -> str:
        parse_sender(text)
        return text


# What its errors mean: by reply code, else 4xx may pass and 5xx will not. A wait of 0: the engine's backoff.
_CODES = {
    421: SendFailed(Verdict.PAUSE, Reason.UNAVAILABLE),  # it closes: not about this mail
    452: SendFailed(Verdict.RETRY, Reason.QUOTA),  # the mailbox or its server is full
    454: SendFailed(Verdict.PAUSE, Reason.UNAUTHORIZED),
    530: SendFailed(Verdict.PAUSE, Reason.UNAUTHORIZED, 60),
    534: SendFailed(Verdict.PAUSE, Reason.UNAUTHORIZED, 60),
    535: SendFailed(Verdict.PAUSE, Reason.UNAUTHORIZED, 60),
    538: SendFailed(Verdict.PAUSE, Reason.UNAUTHORIZED, 60),
}
_TEMPORARY = SendFailed(Verdict.RETRY, Reason.UNAVAILABLE)
_REFUSED = SendFailed(Verdict.DEAD, Reason.REJECTED)
_SENDER_REFUSED = SendFailed(Verdict.RETRY, Reason.MISCONFIGURED, 60)  # about the campaign's from, not about the person
_NO_CONNECTION = SendFailed(Verdict.PAUSE, Reason.UNAVAILABLE)
_NO_ANSWER = SendFailed(Verdict.PAUSE, Reason.TIMEOUT)
_NOT_SUPPORTED = SendFailed(Verdict.PAUSE, Reason.MISCONFIGURED, 60)  # such as no STARTTLS where it has to be
_PERMANENT = 500
_SERVER_CLOSES = 421
_ADDRESS = re.compile(r"""([^\s@,;:<>()\[\]\\"]{1,64})@([^\s@,;:<>()\[\]\\"]{1,253})""")
_ENHANCED = re.compile(r"\b[245]\.\d{1,3}\.\d{1,3}\b")
_HEADERS = SMTP.clone(cte_type="7bit")  # needs no 8BITMIME
_WIDE = _HEADERS.clone(utf8=True)
# RFC 2046 5.1.4. The boundary can be in no part: "=_" is never in quoted-printable text (RFC 2045 6.7).
_ALTERNATIVE = b'\r\nMIME-Version: 1.0\r\nContent-Type: multipart/alternative; boundary="=_leadstream"\r\n'
_PART = (
    b"\r\n--=_leadstream\r\nContent-Type: text/%s; charset=utf-8\r\n"
    b"Content-Transfer-Encoding: quoted-printable\r\n\r\n%s"
)
_END = b"\r\n--=_leadstream--\r\n"


def connect(config: Config) -> Email:
    """Return the channel; a connection is opened when first needed, and kept."""
    return Email(config)


class Email:
    """See :class:`sinks.messages.Channel`."""

    name = NAME
    dedupes = False

    def __init__(self, config: Config) -> None:
        self._config = config
        self._idle: list[aiosmtplib.SMTP] = []

    async def send(self, message: OutgoingMessage, before_sending: BeforeSending) -> SendResult:
        """Send one mail, over a kept connection where there is one."""
        try:
            sender, to = parse_sender(message.sender or self._config.from_address), parse_address(message.to)
            mail = compose(message, sender, to)
        except (ValueError, MessageError, LookupError) as error:
            return SendFailed(Verdict.DEAD, Reason.REJECTED, detail=type(error).__name__)
        while self._idle:
            result = await self._converse(self._idle.pop(), sender, to, mail, before_sending)
            if result is not _NO_CONNECTION:  # else the server has closed it meanwhile: try another
                return result
        try:
            client = await self._connect()
        except (aiosmtplib.SMTPException, OSError) as error:
            return _unconnected(error)
        return await self._converse(client, sender, to, mail, before_sending)

    async def close(self) -> None:
        """Close every kept connection with QUIT."""
        while self._idle:
            client = self._idle.pop()
            with suppress(aiosmtplib.SMTPException, OSError):
                await client.quit(timeout=2)
            client.close()

    async def _converse(
        self, client: aiosmtplib.SMTP, sender: Address, to: Address, mail: bytes, before_sending: BeforeSending
    ) -> SendResult:
        handed = keep = False
        wide = _wide(sender, to)
        encoding, options = ("utf-8", ["SMTPUTF8"]) if wide else ("ascii", [])
        try:
            if wide and not client.supports_extension("smtputf8"):
                keep = True
                return SendFailed(Verdict.DEAD, Reason.REJECTED, detail="SMTPUTF8")
            await client.mail(sender.addr_spec, options=options, encoding=encoding)
            await client.rcpt(to.addr_spec, encoding=encoding)
            await before_sending()
            handed = True
            answer = await client.data(mail)
            keep = True
            return Sent("".join(c for c in answer.message if c.isprintable())[:200])
        except aiosmtplib.SMTPResponseException as error:
            keep = error.code != _SERVER_CLOSES and await _reset(client)
            return _meaning(error)
        except aiosmtplib.SMTPTimeoutError:
            return Unsure(Reason.TIMEOUT) if handed else _NO_ANSWER
        except (aiosmtplib.SMTPServerDisconnected, OSError):
            return Unsure(Reason.UNAVAILABLE) if handed else _NO_CONNECTION
        finally:
            if keep and client.is_connected:
                self._idle.append(client)
            else:
                client.close()

    async def _connect(self) -> aiosmtplib.SMTP:
        config, place = self._config, urlsplit(self._config.url)
        password = config.password.get_secret_value()
        secure = place.scheme == "smtps"
        client = aiosmtplib.SMTP(
            hostname=place.hostname,
            port=place.port,
            username=config.username or None,
            password=password or None,
            timeout=config.timeout_s,
            use_tls=secure,
            start_tls=None if secure or not password else True,
        )
        await client.connect()
        if client.is_ehlo_or_helo_needed:
            await client.ehlo()
        return client


def compose(message: OutgoingMessage, sender: Address, to: Address) -> bytes:
    """Return the mail as it goes out; ValueError when a value would add to its headers."""
    mail = EmailMessage(policy=_WIDE if _wide(sender, to) else _HEADERS)
    mail["From"] = sender
    mail["To"] = to
    mail["Subject"] = message.subject.replace("=?", "= ?")
    mail["Date"] = formatdate(usegmt=True)
    mail["Message-ID"] = f"<{message.message_id}@{sender.domain}>"
    mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: asks for no out-of-office answers
    head = mail.as_bytes().partition(b"\r\n\r\n")[0]
    names = [line.partition(b":")[0].decode() for line in head.split(b"\r\n")]
    if sorted(name for name in names if name[:1] not in " \t") != sorted(mail.keys()):
        raise ValueError("a value adds to the headers")
    return b"".join((head, _ALTERNATIVE, _part("plain", plain_text(message.body)), _part("html", message.body), _END))


def _part(subtype: str, text: str) -> bytes:
    """Return one part of the alternative. EmailMessage does the same, but parses its own headers for a millisecond."""
    lines = b"\n".join(text.encode().splitlines()) + b"\n"
    printable = b2a_qp(lines, istext=True).replace(b"\n", b"\r\n")
    return _PART % (subtype.encode(), printable)


@lru_cache(maxsize=256)
def parse_sender(text: str) -> Address:
    """Return the one address, with or without a name, that ``text`` is; ValueError when it is not."""
    header = SMTP.header_factory("from", text) if text.isprintable() else None
    if header is None or header.defects or len(header.addresses) != 1 or not header.addresses[0].domain:
        raise ValueError("has to be one address, such as Example Ltd <hello@example.com>")
    address: Address = header.addresses[0]
    return parse_address(address.addr_spec, address.display_name.replace("=?", "= ?"))


def parse_address(text: str, display_name: str = "") -> Address:
    """Return the bare address ``text``, its domain in ASCII; ValueError when it is not exactly one."""
    found = _ADDRESS.fullmatch(text.strip())
    if found is None or not text.isprintable() or "=?" in text:
        raise ValueError("has to be one address")
    local, domain = found.groups()
    return Address(display_name, local, normal_domain(domain))


def _wide(sender: Address, to: Address) -> bool:
    return not (sender.addr_spec + to.addr_spec).isascii()


async def _reset(client: aiosmtplib.SMTP) -> bool:
    """Make the connection ready for another mail; return whether it is."""
    try:
        await client.rset()
    except (aiosmtplib.SMTPException, OSError):
        return False
    return True


def _meaning(error: aiosmtplib.SMTPResponseException) -> SendFailed | Unsure:
    if error.code < 400:  # noqa: PLR2004 - no refusal: an unexpected answer
        return Unsure(Reason.UNAVAILABLE)
    meaning = _CODES.get(error.code)
    if meaning is None and isinstance(error, aiosmtplib.SMTPSenderRefused) and error.code >= _PERMANENT:
        meaning = _SENDER_REFUSED
    if meaning is None:
        meaning = _REFUSED if error.code >= _PERMANENT else _TEMPORARY
    enhanced = _ENHANCED.search(error.message)
    return replace(meaning, detail=f"{error.code} {enhanced[0]}" if enhanced else str(error.code))


def _unconnected(error: Exception) -> SendFailed:
    """Return what a failed connection means: it is never about the mail, whatever the code."""
    if isinstance(error, aiosmtplib.SMTPResponseException):
        return replace(_CODES.get(error.code, _NO_CONNECTION), detail=str(error.code))
    if isinstance(error, aiosmtplib.SMTPTimeoutError | TimeoutError):
        return _NO_ANSWER
    return _NO_CONNECTION if isinstance(error, OSError) else replace(_NOT_SUPPORTED, detail=type(error).__name__)
