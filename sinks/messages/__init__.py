"""Message delivery: every message that is requested is sent, and one file a channel.

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
    max_connections: int = Field(4, ge=1, le=64, description="Most messages in progress at once.")
    lease_s: float = Field(
        300, ge=5, le=3600, description="After a crash, messages that were claimed are due after this."
    )
    backoff_s: float = Field(5, gt=0, le=3600, description="Mean wait after a first failure; doubles with each.")
    backoff_max_s: float = Field(3600, ge=1, le=86_400, description="Longest mean wait after a failure.")
    expire_s: float = Field(259_200, ge=60, description="A message that could not be sent for so long fails (3 days).")
    poll_s: float = Field(0.5, gt=0, le=5, description="How often to look for work that nobody announced.")
    when_unsure: Literal["hold", "again"] = Field(
        "again",
        description="After a crash or a lost answer nobody knows whether the provider accepted the message. "
        "again: send it again, at-least-once; hold: give it up as failed, at-most-once.",
    )


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """One message. ``message_id`` is the idempotency key; ``sender`` may be "" (the channel's own)."""

    message_id: str
    to: str
    sender: str
    subject: str
    body: str


@dataclass(frozen=True, slots=True)
class Sent:
    """The provider accepted it. ``provider_id``: the provider's own id of the message, "" where it returns none."""

    provider_id: str = ""


@dataclass(frozen=True, slots=True)
class SendFailed:
    """The provider certainly did not accept it. ``verdict`` says what to do, ``wait_s`` for how long at least.

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


SendResult = Sent | SendFailed | Unsure


class LeaseLost(Exception):  # noqa: N818 - it is a state of the world, not a mistake
    """Another worker may have this message by now: do not hand it over."""


HandingOver = Callable[[], Awaitable[None]]


class Channel(Protocol):
    """A way to reach people."""

    name: str
    # Whether the provider takes an idempotency key: repeating a call whose answer was lost then sends nothing twice.
    dedupes: bool

    async def send(self, message: OutgoingMessage, handing_over: HandingOver) -> SendResult:
        """Send one message.

        Await ``handing_over`` right before the first byte after which the provider might accept the message; where that
        raises (LeaseLost, DependencyUnavailable), let it through and hand nothing over. Raises nothing else. May be
        cancelled at any point, and must then not be sending any more.
        """
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...
