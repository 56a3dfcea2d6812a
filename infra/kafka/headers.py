"""Headers that a client for Python cannot read: those of a record in which a name is not UTF-8."""

from __future__ import annotations

from confluent_kafka import Message

# In place of all headers of such a record, also in its dead letter.
UNREADABLE_HEADERS: tuple[tuple[str, bytes], ...] = (("leadstream.headers", b"dropped: a name is not UTF-8"),)


def make_readable(message: Message) -> None:
    """Replace the headers of ``message`` by ``UNREADABLE_HEADERS`` if they cannot be read.

    Must be the first read of the headers: a second one that fails crashes the process.
    """
    try:
        message.headers()
    except SystemError:
        message.set_headers(list(UNREADABLE_HEADERS))
