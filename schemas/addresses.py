"""E-mail addresses in one normal form: for matching, storage, CRM sync and mail delivery."""

from __future__ import annotations

import re
from functools import lru_cache
from urllib.parse import unquote

import idna
from email_validator import EmailNotValidError, validate_email

from schemas.blanks import without_invisible

_MAX_TEXT = 1000  # characters, with surrounding white space
MAX_EMAIL = 254  # characters; RFC 5321, 4.5.3.1.3
# Permissive on purpose: each mail server decides which local parts (the part before the @) it accepts.
_SHAPE = re.compile(r"[^\s@<>]{1,64}@[^\s@.<>,;]+(?:\.[^\s@.<>,;]+)+")

_QUOTES = ('""', "''", "``", "()", "[]", "\u201c\u201d", "\u2018\u2019", "\u00ab\u00bb")
# What needs no unwrapping and no mapping. No end of a domain by a dot.
_PLAIN = re.compile(r"[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]+\.)+[A-Za-z0-9-]+")


def normal_email(text: str) -> str:
    """Return the normal form of an e-mail address, or "" when ``text`` is not an e-mail address.

    Guarantees: addresses that differ only in surrounding white space, invisible characters, case, Unicode composition
    or the encoding of the domain have the same normal form; so have an address and the same one in ``<>``, after a
    name, after ``mailto:``, in quotes, or with a comma, semicolon or dot after it. A normal form has at most
    ``MAX_EMAIL`` characters, a local part in Unicode NFC and a domain in the ASCII form of IDNA 2008. Its own normal
    form is the same text.

    Source: RFC 5321 (limits), RFC 5322 (names), RFC 6068 (mailto), RFC 6531 (non-ASCII addresses), RFC 5891 (IDNA
    2008), UTS 46 (domain mapping).
    """
    return _normal_email(text) if len(text) <= _MAX_TEXT else ""  # the cache must not keep long texts


@lru_cache(maxsize=65_536)
def _normal_email(text: str) -> str:
    if _PLAIN.fullmatch(text) and len(text) <= MAX_EMAIL:
        return text.lower()  # fast path for about 99 % of addresses
    address = _unwrapped(text)
    if not 0 < len(address) <= MAX_EMAIL:
        return ""
    if address.isascii():
        # The library calls below cost up to 0.1 ms.
        return address.lower() if _SHAPE.fullmatch(address) else ""
    local, _, domain = address.rpartition("@")
    try:
        found = validate_email(f"{local}@example.com", check_deliverability=False)
        normal = f"{found.local_part.lower()}@{normal_domain(domain)}"
    except (EmailNotValidError, ValueError):
        return ""
    # The result obeys the same rules as an address of ASCII, so that it is its own normal form.
    return normal if len(normal) <= MAX_EMAIL and _SHAPE.fullmatch(normal) else ""


def _unwrapped(text: str) -> str:
    """Return the address in ``text`` without what people and programs put around one."""
    text = without_invisible(text)
    while True:
        before, text = text, text.strip().strip(",;").rstrip(".").strip()
        if text[:7].lower() == "mailto:":
            text = unquote(text[7:].partition("?")[0])
        elif text.endswith(">") and "<" in text:
            text = text[text.rindex("<") + 1 : -1]  # also after the name of a person
        elif len(text) > 1 and text[0] + text[-1] in _QUOTES:
            text = text[1:-1]
        if text == before:
            return text


def normal_domain(domain: str) -> str:
    """Return ``domain`` in lower case and in the ASCII form of IDNA 2008.

    Raises:
        ValueError: ``domain`` is not a valid domain name by IDNA 2008.

    """
    if domain.isascii():
        return domain.lower()
    try:
        return idna.encode(domain, uts46=True).decode()
    except idna.IDNAError as error:
        raise ValueError(f"not a valid domain name: {error}") from None
