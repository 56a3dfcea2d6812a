"""Phone numbers in one normal form, with their extension, and the key by which two of them are the same."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

import phonenumbers

from schemas.blanks import without_invisible

_MAX_TEXT = 200  # characters
_FOREIGN = re.compile(r"[^\d+]*\+?00\D*(?=[1-9])")  # most countries' prefix of international calls, instead of +
_MEXICO, _ARGENTINA, _BRAZIL = 52, 54, 55


class Phone(NamedTuple):
    """A phone number. Each text is "" if it is not a possible number.

    ``number``: in E.164 form, with ``;ext=`` and the extension if it has one. ``key``: equal for all spellings of one
    number. ``digits``: without country code and extension.
    """

    number: str
    key: str
    digits: str


_NONE = Phone("", "", "")


def parse_phone(text: str, region: str = "") -> Phone:
    """Parse a phone number.

    Guarantees: separators, invisible characters, 00 for +, a trunk zero, the scheme ``tel:`` and the spelling of the
    extension make no difference. The key is also the same for a Mexican, Argentinian or Brazilian mobile number with
    and without the digit that marks it as mobile (1, 9, 9).

    Args:
        text: the number as it was sent.
        region: the country of numbers without a country code, as two letters (ISO 3166); "": they are no numbers.

    Source: RFC 3966 (extensions); the numbering plans of libphonenumber.
    """
    return _parse(text, region) if text and len(text) <= _MAX_TEXT else _NONE  # the cache must not keep long texts


def is_one_digit(phone: Phone) -> bool:
    """Return whether a number is one digit repeated: it belongs to nobody."""
    return len(set(phone.digits)) == 1


@lru_cache(maxsize=65_536)
def _parse(text: str, region: str) -> Phone:
    text = without_invisible(text).strip()
    if foreign := _FOREIGN.match(text):
        text = "+" + text[foreign.end() :]
    try:
        number = phonenumbers.parse(text, region or None)
    except phonenumbers.NumberParseException:
        return _NONE
    digits = phonenumbers.national_significant_number(number)
    if number.country_code == _MEXICO and len(digits) == 11 and digits[0] == "1":  # noqa: PLR2004 - numbering plan
        # Since 2019 a mobile number has no 1 any more.
        digits = digits[1:]
        number.national_number = int(digits)
    if not phonenumbers.is_possible_number(number):
        return _NONE
    extension = f";ext={number.extension}" if number.extension else ""
    e164 = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)
    key = f"+{number.country_code}{_without_mobile_digit(number.country_code or 0, digits)}"
    return Phone(e164 + extension, key + extension, digits)


def _without_mobile_digit(country: int, digits: str) -> str:
    if country == _ARGENTINA and len(digits) == 11 and digits[0] == "9":  # noqa: PLR2004
        return digits[1:]
    # Two digits of the area, then nine of a mobile number, the first a 9 since 2016; a landline number begins with 2-5.
    if country == _BRAZIL and len(digits) == 11 and digits[2] == "9":  # noqa: PLR2004
        return digits[:2] + digits[3:]
    return digits
