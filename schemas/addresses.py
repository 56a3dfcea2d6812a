"""E-mail addresses in one normal form: for matching, storage, CRM sync and mail delivery."""

from __future__ import annotations

import re
from functools import lru_cache

import idna
from email_validator import EmailNotValidError, validate_email

_MAX_TEXT = 1000  # characters, with surrounding white space
MAX_EMAIL = 254  # characters; RFC 5321, 4.5.3.1.3
# Permissive on purpose: each mail server decides which local parts (the part before the @) it accepts.
_SHAPE = re.compile(r"[^\s@]{1,64}@[^\s@.]+(?:\.[^\s@.]+)+")


def normal_email(text: str) -> str:
    """Return the normal form of an e-mail address, or "" when ``text`` is not an e-mail address.

    Guarantees: addresses that differ only in surrounding white space, case, Unicode composition or the encoding of the
    domain have the same normal form. A normal form has at most ``MAX_EMAIL`` characters, a local part in Unicode NFC
    and a domain in the ASCII form of IDNA 2008. Its own normal form is the same text.

    Source: RFC 5321 (limits), RFC 6531 (non-ASCII addresses), RFC 5891 (IDNA 2008), UTS 46 (domain mapping).
    """
    return _normal_email(text) if len(text) <= _MAX_TEXT else ""  # the cache must not keep long texts


@lru_cache(maxsize=65_536)
def _normal_email(text: str) -> str:
    address = text.strip()
    if not 0 < len(address) <= MAX_EMAIL:
        return ""
    if address.isascii():
        # Fast path for about 99 % of addresses; the library calls below cost up to 0.1 ms.
        return address.lower() if _SHAPE.fullmatch(address) else ""
    local, _, domain = address.rpartition("@")
    try:
        found = validate_email(f"{local}@example.com", check_deliverability=False)
        normal = f"{found.local_part.lower()}@{normal_domain(domain)}"
    except (EmailNotValidError, ValueError):
        return ""
    # The result obeys the same rules as an address of ASCII, so that it is its own normal form.
    return normal if len(normal) <= MAX_EMAIL and _SHAPE.fullmatch(normal) else ""


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
