"""Characters that show nothing, and texts of only such characters, which say nothing about a lead."""

from __future__ import annotations

import re

# Control and format characters, fillers, variation selectors; beside white space.
_CHARACTERS = (
    "\\x00-\\x08\\x0e-\\x1b\\x7f-\\x84\\x86-\\x9f\\u00ad\\u034f\\u061c\\u115f\\u1160\\u17b4\\u17b5\\u180b-\\u180f"
    "\\u200b-\\u200f\\u202a-\\u202e\\u2060-\\u206f\\u2800\\u3164\\ufe00-\\ufe0f\\ufeff\\uffa0\\ufff0-\\ufffb"
    "\\U000e0000-\\U000e0fff"
)
_BLANK = re.compile(f"[\\s{_CHARACTERS}]*")
_INVISIBLE = re.compile(f"[{_CHARACTERS}]")


def is_blank(text: str) -> bool:
    """Return whether ``text`` is empty or shows nothing: such a value says nothing about a lead."""
    return _BLANK.fullmatch(text) is not None


def without_invisible(text: str) -> str:
    """Return ``text`` without its characters that show nothing, except white space."""
    return _INVISIBLE.sub("", text)
