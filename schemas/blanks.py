"""Texts that show nothing: such a value says nothing about a lead."""

from __future__ import annotations

import re

# White space, and characters that are shown as nothing: control and format characters, fillers, variation selectors.
_INVISIBLE = re.compile(
    "[\\s\\x00-\\x1f\\x7f-\\x9f\\u00ad\\u034f\\u061c\\u115f\\u1160\\u17b4\\u17b5\\u180b-\\u180f\\u200b-\\u200f\\u202a-\\u202e"
    "\\u2060-\\u206f\\u2800\\u3164\\ufe00-\\ufe0f\\ufeff\\uffa0\\ufff0-\\ufffb\\U000e0000-\\U000e0fff]*"
)


def is_blank(text: str) -> bool:
    """Return whether ``text`` is empty or shows nothing: such a value says nothing about a lead."""
    return _INVISIBLE.fullmatch(text) is not None
