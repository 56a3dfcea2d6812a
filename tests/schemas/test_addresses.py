"""The normal form of an e-mail address."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.addresses import MAX_EMAIL, normal_domain, normal_email


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Ada@Example.COM", "ada@example.com"),
        ("  ada@example.com ", "ada@example.com"),
        ("ada+tag@mail.example.test", "ada+tag@mail.example.test"),
        ("o'neil@example.co.uk", "o'neil@example.co.uk"),
        ("ada@faß.example", "ada@xn--fa-hia.example"),
        ("ada@BÜCHER.example", "ada@xn--bcher-kva.example"),
        ("ada@xn--bcher-kva.example", "ada@xn--bcher-kva.example"),
        ("Jos\u00e9@example.com", "jos\u00e9@example.com"),
        ("Jose\u0301@example.com", "jos\u00e9@example.com"),
        ("a@münchen.de.", "a@xn--mnchen-3ya.de"),
        ("\ufeffada@exam\u00adple.com\u200b", "ada@example.com"),
        ("<ada@example.com>", "ada@example.com"),
        ('"Lovelace, Ada" <ada@example.com>;', "ada@example.com"),
        ("mailto:ada@example.com", "ada@example.com"),
        ("MailTo:ada%40example.com?subject=Hello", "ada@example.com"),
        ("ada@example.com,", "ada@example.com"),
        ("'ada@example.com'", "ada@example.com"),
        ("\u00a0Ada@Example.com\u00a0", "ada@example.com"),
        ("用户@例子.example", "用户@xn--fsqu00a.example"),
    ],
)
def test_an_address_has_this_normal_form(text: str, normal: str) -> None:
    assert normal_email(text) == normal


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "ada",
        "ada@",
        "@example.com",
        "ada@example",
        "a b@example.com",
        "ada@exa mple.com",
        "ü@",
        "ada@ü",
        "ü b@x.de",
        "a" * 65 + "@example.com",
        "ü" * 65 + "@example.com",
        "a@" + "b" * 250 + ".com",
        "ada@\u2028.example",
        "jürgen@exam ple.com",
        "jürgen@.com",
        "jürgen@a..de",
        "jürgen@b.de\r\nBcc: x.de",
        "a@münchen.de..x",
        "<>",
        "mailto:",
        "ada@example.com>",
        "Ada <ada>",
        "İ" * 40 + "@example.com",
    ],
)
def test_a_text_that_is_not_an_address_has_no_normal_form(text: str) -> None:
    assert normal_email(text) == ""


@given(st.one_of(st.text(max_size=300), st.from_regex(r"\A.{1,10}@.{1,20}\.\w{2,5}\Z"), st.emails()))
def test_a_normal_form_is_bounded_and_stable_and_its_domain_is_ascii(text: str) -> None:
    normal = normal_email(text)
    assert normal_email(normal) == normal
    assert len(normal) <= MAX_EMAIL
    if normal:
        local, _, domain = normal.rpartition("@")
        assert local
        assert domain.isascii()
        assert not any(character.isspace() for character in normal)


def test_a_domain_that_idna_2008_forbids_is_an_error() -> None:
    assert normal_domain("Example.COM") == "example.com"
    with pytest.raises(ValueError, match="not a valid domain name"):
        normal_domain("\u2028.example")
