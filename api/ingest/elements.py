"""Splits an array of JSON events into the text of each, so that an event that is not valid JSON costs only itself.

Used only for a body that orjson rejects; a valid body is parsed in one call. The splitter knows strings, brackets and
commas, and nothing else of JSON: every text that it returns must still be parsed.

Guarantees: linear in the size of the body, with at most :data:`MAX_STEPS` steps in Python. A single event of the
default maximum size takes fewer, unless it is nested thousands of levels deep.
"""

from __future__ import annotations

import re

import orjson

# A value of up to three levels is one step, and so is a sequence of opening or of closing brackets.
MAX_STEPS = 50_000
_STRING = rb'"(?:[^"\\]++|\\.)*+"'


def _skip(other: bytes, levels: int) -> bytes:
    """Return a pattern of strings, of the characters ``other``, and of values with at most ``levels`` levels.

    Possessive, and matched at a position, never searched for: a text is read once, and once more for each level.
    """
    nested = rb"|[\[{]" + _skip(_NO_BRACKET, levels - 1) + rb"[\]}]" if levels else b""
    return rb"(?:" + other + rb"++|" + _STRING + nested + rb")*+"


_NO_BRACKET = rb'[^"\[\]{}]'
_LEVELS = 3
_TO_BRACKET = re.compile(_skip(_NO_BRACKET, _LEVELS), re.DOTALL)
_TO_COMMA = re.compile(_skip(rb'[^"\[\]{},]', _LEVELS), re.DOTALL)
_OPENING = re.compile(rb"[\[{]++")
_CLOSING = re.compile(rb"[\]}]++")
_SPACE = re.compile(rb"[ \t\r\n]*+")
_KEY = re.compile(rb"[ \t\r\n]*+(" + _STRING + rb")[ \t\r\n]*+:[ \t\r\n]*+", re.DOTALL)

Span = tuple[int, int]


class _Unsplittable(Exception):  # noqa: N818 - a result
    """The text is truncated, its brackets do not match, or it takes too many steps."""


def elements(body: bytes) -> list[bytes] | None:
    """Return the text of each element of ``[...]`` or ``{"events": [...]}``.

    None: the body is neither, is truncated (a broken transfer: none of it can be trusted), or has brackets that do not
    match.
    """
    scanner = _Scanner(body)
    start = _space(body, 0)
    try:
        if body[start : start + 1] == b"[":
            spans, end = scanner.items(start)
        else:
            spans, end = scanner.events(start)
    except _Unsplittable:
        return None
    if _space(body, end) != len(body):
        return None
    return [body[first:last] for first, last in spans]


class _Scanner:
    """Finds the ends of values in ``body``, and counts its steps."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._steps = 0

    def items(self, start: int) -> tuple[list[Span], int]:
        """Return the spans of the elements of the array at ``start``, and the position after the array."""
        spans: list[Span] = []
        at = start + 1
        while True:
            end = self._value_end(at)
            spans.append((at, end))
            closing = self._body[end : end + 1]
            if closing == b"]":
                empty = len(spans) == 1 and not self._body[at:end].strip()
                return ([] if empty else spans), end + 1
            if closing != b",":
                raise _Unsplittable
            at = end + 1

    def events(self, start: int) -> tuple[list[Span], int]:
        """Return the spans of the elements of the member ``events`` of the object at ``start``, and its end.

        The other members may be anything, since nothing is read from them, but ``type`` is none of them: an object
        with a type is one event.
        """
        body, at = self._body, start
        if body[at : at + 1] != b"{":
            raise _Unsplittable
        found: list[Span] | None = None
        names: list[str | None] = []
        while body[at : at + 1] in {b"{", b","}:
            key = _KEY.match(body, at + 1)
            if key is None:
                raise _Unsplittable
            at = key.end()
            names.append(_name(key[1]))
            if names[-1] == "events" and body[at : at + 1] == b"[":
                found, end = self.items(at)
                at = _space(body, end)
            else:
                at = self._value_end(at)
        if found is None or body[at : at + 1] != b"}" or names.count("events") > 1 or "type" in names:
            raise _Unsplittable
        return found, at + 1

    def _value_end(self, at: int) -> int:
        """Return the position of the comma or bracket that follows the value at ``at``."""
        body, depth = self._body, 0
        while True:
            self._steps += 1
            match = (_TO_BRACKET if depth else _TO_COMMA).match(body, at)
            at = match.end() if match else at
            mark = body[at : at + 1]
            if not mark or mark == b'"' or self._steps > MAX_STEPS:  # truncated, the last time within a string
                raise _Unsplittable
            if mark in b"[{":
                end = self._run_end(_OPENING, at)
                depth += end - at
            elif not depth:
                return at
            else:
                end = min(self._run_end(_CLOSING, at), at + depth)
                depth -= end - at
            at = end

    def _run_end(self, brackets: re.Pattern[bytes], at: int) -> int:
        match = brackets.match(self._body, at)
        return match.end() if match else at


def _space(body: bytes, at: int) -> int:
    match = _SPACE.match(body, at)
    return match.end() if match else at


def _name(key: bytes) -> str | None:
    """Return the name of a member, or None if it is not valid JSON."""
    try:
        return str(orjson.loads(key))
    except ValueError:
        return None
