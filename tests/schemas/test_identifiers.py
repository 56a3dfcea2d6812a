"""One spelling of each identifier, and none for what identifies nobody."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.identifiers import normal_crm_id, normal_id, normal_identifiers, phone_key
from schemas.phones import parse_phone

NOBODY: dict[str, Any] = {"external_id": "", "email": "", "phone": "", "anonymous_id": "", "crm_ids": {}}


@pytest.mark.parametrize(
    "spellings",
    [
        ["+52 55 1234 5678", "+52 1 55 1234 5678", "0052 (1) 55-1234-5678"],
        ["+54 11 2345 6789", "+54 9 11 2345 6789"],
        ["+55 11 98765-4321", "+55 11 8765-4321"],
        ["+44 20 7183 8750", "00442071838750", "+44 (0)20 7183 8750", "(00) 44 20 71838750", "tel:+44-20-7183-8750",
         "\u202a+44 20 7183 8750\u202c", "+44\u00a020\u00a07183\u00a08750", "+44.20.7183.8750"],
        ["+1 650 253 0000 x101", "tel:+16502530000;ext=101", "+1 (650) 253-0000 ext. 101", "+1 650 253 0000#101"],
        ["+39 06 698 12345", "+39 (0)6 698 12345"],
    ],
)  # fmt: skip
def test_all_spellings_of_a_number_have_one_key(spellings: list[str]) -> None:
    assert len({phone_key(text) for text in spellings} - {""}) == 1
    assert all(phone_key(parse_phone(text).number) == phone_key(text) for text in spellings)


def test_extensions_are_kept_and_make_another_number() -> None:
    assert parse_phone("+1 650 253 0000 x101").number == "+16502530000;ext=101"
    assert len({phone_key(f"+1 650 253 0000{ext}") for ext in ("", " x101", " x102")}) == 3


def test_a_number_without_a_country_code_needs_a_region() -> None:
    assert phone_key("020 7183 8750") == ""
    assert phone_key("020 7183 8750", "GB") == "+442071838750"
    assert phone_key("0044 20 7183 8750", "DE") == "+442071838750"


@pytest.mark.parametrize("text", ["+1 111 111 1111", "+1 (111) 111-1111", "+49 0000000000", "12345", "", "0", "tel:"])
def test_numbers_of_nobody(text: str) -> None:
    assert phone_key(text) == ""


@pytest.mark.parametrize(
    "text",
    ["null", " NULL ", "undefined", "(null)", "[object Object]", "None", "n/a", "N.A.", "-", "--", "?", "0", "000",
     "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff", "1111111111", "not set",
     "anonymous", "\u200bnull", "xxxxxxxx", '"undefined"', "0" * 100],
)  # fmt: skip
def test_placeholders_are_no_ids(text: str) -> None:
    assert normal_id(text) == ""


@pytest.mark.parametrize(
    "text", ["1", "7", "user-1", "11", "reception-tablet", "nullam", "test-42", "a", "Ünal", "01", "007"]
)
def test_short_and_ordinary_ids_are_ids(text: str) -> None:
    assert normal_id(f" {text}\u200b ") == text


@pytest.mark.parametrize("email", ["test@test.com", "null@example.com", "undefined@x.com", "none@none.com"])
def test_placeholders_are_no_addresses(email: str) -> None:
    assert list(normal_identifiers(NOBODY | {"email": email})) == []


def test_salesforce_ids_have_18_characters_and_respect_the_case() -> None:
    assert normal_crm_id("salesforce", "003D000000QV9n2") == "003D000000QV9n2IAD"
    assert normal_crm_id("salesforce", "003D000000QV9n2IAD") == "003D000000QV9n2IAD"
    assert normal_crm_id("salesforce", "003d000000qv9n2iad") == "003D000000QV9n2IAD"
    assert normal_crm_id("salesforce", "003D000000QV9N2") != "003D000000QV9n2IAD"
    assert normal_crm_id("hubspot", "003D000000QV9n2") == "003D000000QV9n2"


@given(st.text("0123456789ABCXYZabcxyz", min_size=15, max_size=15))
def test_a_salesforce_id_of_18_characters_survives_the_loss_of_its_case(text: str) -> None:
    normal = normal_crm_id("salesforce", text)
    if normal:
        assert normal[:15] == text
        assert normal_crm_id("salesforce", normal) == normal
        assert {normal_crm_id("salesforce", each) for each in (normal.lower(), normal.upper())} == {normal}


@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=40))
def test_a_normal_form_is_its_own_normal_form(name: str, email: str, phone: str) -> None:
    given = NOBODY | {"external_id": name, "email": email, "phone": phone, "crm_ids": {"salesforce": name}}
    once = dict(normal_identifiers(given))
    again = {kind: once.get(kind, "") for kind in ("external_id", "email", "phone")}
    crm_ids = {"salesforce": once["crm:salesforce"]} if "crm:salesforce" in once else {}
    assert dict(normal_identifiers(NOBODY | again | {"crm_ids": crm_ids})) == once
