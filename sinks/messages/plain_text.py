"""Converts the HTML of a message to plain text, for mail readers that do not show HTML.

Guarantees: the time is linear in the length of the HTML, whatever it holds. The standard library's HTMLParser needs
hours for a megabyte of ``<!--`` (before Python 3.13.6), and a message can hold what a lead wrote.
"""

from __future__ import annotations

import re
from html import unescape

_SKIPPED = frozenset({"head", "title"})
_RAW = frozenset({"script", "style"})  # their content has no tags
_PARAGRAPHS = frozenset({"p", "h1", "h2", "h3", "h4", "table", "ul", "ol", "blockquote", "hr"})
_LINES = frozenset({"br", "div", "li", "tr"})

# No alternative but a comment goes past the next "<", so no character is looked at more than a few times.
_TOKEN = re.compile(
    r"""<!--.*?(?:-->|\Z)"""
    r"""|<[!?][^<>]*>"""
    r"""|<(?P<end>/?)(?P<tag>[a-zA-Z][a-zA-Z0-9]*)(?P<rest>(?:[^<>"']|"[^"<]*"|'[^'<]*')*+|[^<>]*)>"""
    r"""|(?P<text><?[^<]*)""",
    re.DOTALL,
)
_HREF = re.compile(r"""\shref\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""", re.IGNORECASE)


class _Text:
    def __init__(self) -> None:
        self.parts: list[str] = []
        self._skipping = 0
        self._links: list[str] = []

    def start(self, tag: str, rest: str) -> None:
        if tag in _SKIPPED:
            self._skipping += 1
        elif tag == "a":
            href = _HREF.search(rest)
            self._links.append(unescape(href[1] or href[2] or href[3] or "") if href else "")
        self._break(tag)

    def end(self, tag: str) -> None:
        if tag in _SKIPPED:
            self._skipping = max(0, self._skipping - 1)
        elif tag == "a" and self._links and (link := self._links.pop()):
            self.parts.append(f" ({link})")
        self._break(tag)

    def data(self, text: str) -> None:
        if not self._skipping:
            self.parts.append(re.sub(r"\s+", " ", unescape(text)))

    def _break(self, tag: str) -> None:
        self.parts.append("\n\n" if tag in _PARAGRAPHS else "\n" if tag in _LINES else "")


def plain_text(html: str) -> str:
    """Return the text of ``html``: paragraphs are separated by blank lines, a link's URL follows its text."""
    text, at = _Text(), 0
    while at < len(html) and (token := _TOKEN.match(html, at)):
        at = token.end()
        tag = (token["tag"] or "").lower()
        if token["text"]:
            text.data(token["text"])
        elif tag and token["end"]:
            text.end(tag)
        elif tag in _RAW:
            closing = re.compile(f"</{tag}", re.IGNORECASE).search(html, at)
            at = closing.start() if closing else len(html)
        elif tag:
            text.start(tag, token["rest"])
    lines = "\n".join(line.strip() for line in "".join(text.parts).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", lines).strip() + "\n"
