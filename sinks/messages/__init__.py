"""Message delivery: one engine that sends each message, none left out, and one file a channel.

A channel file defines ``NAME``, ``Config`` (a :class:`DeliveryConfig`) and ``connect(config) -> Channel``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from infra.errors import Verdict
from infra.outcomes import Reason


class DeliveryConfig(BaseModel):
    """What every channel's settings hold: how the engine works for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    timeout_s: float = Field(30, gt=0, le=600, description="Longest wait for one answer.")
    max_connections: int = Field(4, ge=1, le=64, description="Most messages under way at once.")
    lease_s: float = Field(300, ge=5, le=3600, description="After a crash, messages in hand are looked at after this.")
    backoff_s: float = Field(5, gt=0, le=3600, description="Wait after a first failure; doubles with each.")
    backoff_max_s: float = Field(3600, ge=1, le=86_400)
    expire_s: float = Field(259_200, ge=60, description="Given up when it could not be sent for so long (3 days).")
    poll_s: float = Field(0.5, gt=0, le=5, description="How often to look for work that nobody announced.")
    when_unsure: Literal["hold", "again"] = Field(
        "again",
        description="A crash or a lost answer left open whether it was taken. again: never not; hold: never twice.",
    )


@dataclass(frozen=True, slots=True)
class Message:
    """One message. ``message_id`` is the idempotency key; ``sender`` may be "" (the channel's own)."""

    message_id: str
    to: str
    sender: str
    subject: str
    body: str


@dataclass(frozen=True, slots=True)
class Sent:
    """The provider has taken it. ``provider_id``: what it calls it, "" when it does not say."""

    provider_id: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """The provider has certainly not taken it; ``verdict`` says what to do, ``wait_s`` for how long at least.

    ``detail`` is the provider's own code, never its words (they quote addresses).
    """

    verdict: Verdict
    reason: Reason
    wait_s: float = 0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Unsure:
    """It was handed over, and the answer was lost."""

    reason: Reason


Result = Sent | Failed | Unsure


class LeaseLost(Exception):  # noqa: N818 - it is a state of the world, not a mistake
    """Somebody else has this message in hand by now: do not hand it over."""


HandingOver = Callable[[], Awaitable[None]]


class Channel(Protocol):
    """A way to reach people."""

    name: str
    # Whether the provider takes an idempotency key: repeating a call whose answer was lost then sends nothing twice.
    dedupes: bool

    async def send(self, message: Message, handing_over: HandingOver) -> Result:
        """Send one message.

        Await ``handing_over`` right before the first byte after which the provider might take the message; where that
        raises (LeaseLost, DependencyAway), let it through and hand nothing over. Raises nothing else. May be cancelled
        at any point, and must then not be sending any more.
        """
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...
