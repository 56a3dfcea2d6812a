"""Headers that a client for Python cannot read: those of a record in which a name is not UTF-8."""

from __future__ import annotations

from operator import methodcaller

from confluent_kafka import Message

# In place of all headers of such a record, also in its dead letter.
UNREADABLE_HEADERS: tuple[tuple[str, bytes], ...] = (("leadstream.headers", b"dropped: a name is not UTF-8"),)

# When a name cannot be decoded, the client returns a result although it has set an exception. The interpreter reports
# that as SystemError only for calls that it has not specialised, so not reliably for ``message.headers()`` in a loop:
# the exception then appears at another place. ``methodcaller`` always checks the result.
_read_headers = methodcaller("headers")


def make_readable(message: Message) -> None:
    """Replace the headers of ``message`` by ``UNREADABLE_HEADERS`` if they cannot be read.

    Must be the first read of the headers: a second one that fails crashes the process.
    """
    try:
        _read_headers(message)
    except SystemError:
        message.set_headers(list(UNREADABLE_HEADERS))
