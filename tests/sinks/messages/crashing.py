"""A real channel whose process ends right before or right after the provider has the message."""

from __future__ import annotations

from sinks.messages import BeforeSending, Channel, OutgoingMessage, SendResult


class Crash(Exception):  # noqa: N818
    """The process ends here."""


class Crashing:
    """``when``: "before", "after", or "" for a channel that does not crash."""

    name = "email"

    def __init__(self, inner: Channel, when: str, dedupes: bool = False) -> None:
        self.inner = inner
        self.when = when
        self.dedupes = dedupes

    async def send(self, message: OutgoingMessage, before_sending: BeforeSending) -> SendResult:
        if self.when == "before":
            raise Crash
        result = await self.inner.send(message, before_sending)
        if self.when == "after":
            raise Crash
        return result

    async def close(self) -> None:
        return
