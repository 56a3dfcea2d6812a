"""The normal forms of identifiers, and placeholders: what programs send for "no value", which identifies nobody."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from typing import Any

from schemas.addresses import normal_email
from schemas.blanks import without_invisible
from schemas.phones import is_one_digit, parse_phone

_REPEATED = 6  # a character repeated so often is no id
_LONGEST_WORD = 16  # characters, with brackets around it
_WORDS = frozenset({
    "null", "nil", "none", "undefined", "unknown", "nan", "na", "notset", "notavailable", "notapplicable", "empty",
    "missing", "blank", "novalue", "anonymous", "true", "false", "objectobject", "xxx", "userid", "anonymousid",
    "externalid", "emptystring", "1234567890", "0123456789", "123456789", "012345678",
})  # fmt: skip
# Local parts that mean no address, at any domain.
_NO_ADDRESS = frozenset({"null", "undefined", "none", "noemail", "nomail", "nil", "unknown", "email_not_unlocked"})
# Domains of such a name have no people, and a name of these at a domain of the same name is none: aaa@aaa.com.
_NO_DOMAIN = frozenset({
    "test", "tests", "testing", "fake", "none", "null", "undefined", "asdf", "qwerty", "email", "noemail", "nomail",
    "dummy", "sample", "domain", "anonymous", "foo", "bar",
})  # fmt: skip
_NO_NAME = frozenset({
    "test", "tests", "testing", "fake", "none", "no", "na", "null", "undefined", "asdf", "qwerty", "email", "mail",
    "noemail", "nomail", "unknown", "a", "aa", "aaa", "b", "x", "xx", "xxx", "abc", "foo", "bar", "dummy", "sample",
    "user", "name", "email_not_unlocked", "domain", "anonymous",
})  # fmt: skip
_SUSPECT = _NO_ADDRESS | _NO_NAME
_SALESFORCE = "salesforce"
_SALESFORCE_ID = re.compile(r"[A-Za-z0-9]{15}(?:[A-Za-z0-5]{3})?")
_CHECK = "ABCDEFGHIJKLMNOPQRSTUVWXYZ012345"


def normal_identifiers(identifiers: Mapping[str, Any], region: str = "") -> Iterator[tuple[str, str]]:
    """Yield the kind and the normal form of each identifier that identifies somebody, without its tenant's policy.

    E-mail addresses are in the form of :func:`schemas.addresses.normal_email`, phone numbers are the key of
    :func:`schemas.phones.parse_phone`, Salesforce ids have 18 characters. All ids are without invisible characters and
    white space around them.

    Args:
        identifiers: the field of a valid event.
        region: of phone numbers without a country code.

    """
    if (value := identifiers["external_id"]) and (value := normal_id(value)):
        yield "external_id", value
    if (value := identifiers["email"]) and (value := normal_email(value)) and not is_no_address(value):
        yield "email", value
    if (value := identifiers["phone"]) and (value := phone_key(value, region)):
        yield "phone", value
    if (value := identifiers["anonymous_id"]) and (value := normal_id(value)):
        yield "anonymous_id", value
    for crm, given in identifiers["crm_ids"].items():
        if value := normal_crm_id(name := crm.strip().lower(), given):
            yield f"crm:{name}", value


def normal_id(text: str) -> str:
    """Return an id without invisible characters and surrounding white space, or "" if it is a placeholder."""
    # Ids differ by their case and their inner characters: nothing else is changed.
    text = text.strip() if text.isascii() and text.isprintable() else without_invisible(text).strip()
    return "" if is_placeholder(text) else text


def is_placeholder(text: str, more: Collection[str] = ()) -> bool:
    """Return whether an id identifies nobody: it is a word for "no value", only zeros, or one character repeated.

    ``more``: further placeholders, in lower case.
    """
    if more and text.lower() in more:
        return True
    if len(text) > _LONGEST_WORD:
        return len(set(text)) <= 3 and _is_one_character(text)  # noqa: PLR2004 - it, in two cases, and a separator
    if text.isalnum() and not text.isalpha() and not text.isdigit():
        return False  # fast path: letters and digits are no word, and more than one character
    return _is_word(text) or _is_one_character(text)


@lru_cache(maxsize=65_536)
def _is_word(text: str) -> bool:
    return "".join(filter(str.isalnum, text.lower())) in _WORDS


def _is_one_character(text: str) -> bool:
    core = {c for c in text.lower() if c.isalnum()}
    return not core or (len(core) == 1 and (core == {"0"} or sum(map(str.isalnum, text)) >= _REPEATED))


def is_no_address(email: str) -> bool:
    """Return whether an e-mail address in normal form is a placeholder, such as test@test.com."""
    local, _, domain = email.partition("@")
    if local not in _SUSPECT:
        return False
    name = domain.partition(".")[0]
    return local in _NO_ADDRESS or name == local or name in _NO_DOMAIN


def phone_key(text: str, region: str = "") -> str:
    """Return the key of a phone number, or "" if it is not a possible number, or one digit repeated."""
    phone = parse_phone(text, region)
    return "" if is_one_digit(phone) else phone.key


def normal_crm_id(crm: str, text: str) -> str:
    """Return the id of a CRM's record, or "" if it is a placeholder. Salesforce ids get 18 characters.

    Source: Salesforce, "ID Field Type": the last three characters say which of the others are capital letters.
    """
    text = normal_id(text)
    if crm != _SALESFORCE or not _SALESFORCE_ID.fullmatch(text):
        return text
    given, check = text[:15], text[15:].upper()
    if check and check != _check(given):
        # The case was lost on the way: the last three characters restore it.
        restored = "".join(
            c.upper() if _CHECK.index(check[at // 5]) >> at % 5 & 1 else c.lower() for at, c in enumerate(given)
        )
        if _check(restored) != check:
            return text
        given = restored
    return given + _check(given)


def _check(text: str) -> str:
    return "".join(
        _CHECK[sum(1 << at for at, c in enumerate(text[start : start + 5]) if c.isupper())] for start in (0, 5, 10)
    )
