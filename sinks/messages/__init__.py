"""Message delivery: sends the messages that campaigns request. Each channel is one file.

A channel file defines ``NAME``, ``Config`` (a :class:`DeliveryConfig`) and ``connect(config) -> Channel``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from pydantic import Field

from infra.errors import Verdict
from infra.outcomes import Reason
from sinks.work_config import WorkConfig


class DeliveryConfig(WorkConfig):
    """The settings that every channel has. ``process_fields``: those of the process; the others are of one account."""

    process_fields: ClassVar[frozenset[str]] = frozenset(
        {"max_connections", "lease_s", "backoff_s", "backoff_max_s", "expire_s", "poll_s", "when_unsure"}
    )

    timeout_s: float = Field(
        30, gt=0, le=600, description="Timeout of one response, in seconds; at most half of lease_s."
    )
    max_connections: int = Field(
        4, ge=1, le=64, description="Maximum number of messages that are sent at the same time."
    )
    lease_s: float = Field(
        60,
        ge=5,
        le=3600,
        description="Length of a lease on claimed messages, in seconds. Sending is cancelled after half of it. After a "
        "crash, the messages can be claimed again when it ends.",
    )
    backoff_s: float = Field(
        5,
        gt=0,
        le=3600,
        description="Mean wait after a message's first failure, in seconds; doubles with each failure.",
    )
    backoff_max_s: float = Field(
        3600, ge=1, le=86_400, description="Maximum of the mean wait after a failure, in seconds."
    )
    expire_s: float = Field(
        259_200,
        ge=60,
        description="Age in seconds at which a message that was not sent is marked as failed (default: 3 days).",
    )
    poll_s: float = Field(
        0.5, gt=0, le=5, description="Seconds between two searches for due messages, such as those whose backoff ended."
    )
    when_unsure: Literal["hold", "again"] = Field(
        "again",
        description="After a crash or a lost response it may be unknown whether the provider accepted a message. "
        "again: send it again (at-least-once). hold: mark it as failed, do not send it again (at-most-once).",
    )


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """A message to send. ``message_id``: the idempotency key. ``sender``: "" for the channel's default."""

    message_id: str
    to: str
    sender: str
    subject: str
    body: str


@dataclass(frozen=True, slots=True)
class Sent:
    """The provider accepted the message. ``provider_id``: the provider's id of it, "" if it returns none."""

    provider_id: str = ""


@dataclass(frozen=True, slots=True)
class SendFailed:
    """The provider did not accept the message. ``verdict``: what to do; ``wait_s``: minimum wait, in seconds.

    ``detail``: the provider's error code, never its message, which can contain addresses.
    """

    verdict: Verdict
    reason: Reason
    wait_s: float = 0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Unsure:
    """The message was sent but the response was lost: it is unknown whether the provider accepted the message."""

    reason: Reason


SendResult = Sent | SendFailed | Unsure


class LeaseLost(Exception):  # noqa: N818 - a state of the lease, not a defect
    """The lease on the message has ended: another worker may have claimed it, so it must not be sent here."""


BeforeSending = Callable[[], Awaitable[None]]


class Channel(Protocol):
    """A connection to a message provider, such as an SMTP server."""

    name: str
    # Whether the provider supports an idempotency key. If so, a call whose response was lost can be repeated safely.
    dedupes: bool

    async def send(self, message: OutgoingMessage, before_sending: BeforeSending) -> SendResult:
        """Send one message.

        Args:
            message: to send.
            before_sending: must be awaited directly before the first byte after which the provider might accept the
                message. If it raises, nothing may be sent.

        Raises:
            LeaseLost, DependencyUnavailable: raised by ``before_sending``; no other exception is raised.

        Cancellation can happen at any point. After it, nothing more may be sent.
        """
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...
