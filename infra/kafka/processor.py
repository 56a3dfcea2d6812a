"""What a stage or a sink is to the batch loop (:mod:`infra.kafka.batches`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from confluent_kafka import Message

from infra.kafka.producer import Output

Batch = TypeVar("Batch")


@dataclass(frozen=True, slots=True)
class Effects:
    """The result of a batch: ``outputs`` to deliver before the commit, and how many of its records were ``dead``.

    Outputs that are expensive to build are passed as a function: it is called while the next batch is being applied.
    """

    outputs: Sequence[Output] | Callable[[], Sequence[Output]] = ()
    dead: int = 0

    def to_deliver(self) -> Sequence[Output]:
        """Return the outputs, built now where they are not yet."""
        return self.outputs() if callable(self.outputs) else self.outputs


class Processor(Protocol[Batch]):
    """A stage or a sink. ``Batch`` is its own form of a batch: what ``prepare`` makes for ``apply``.

    Crash: both methods are called again with the same records.
    """

    def prepare(self, messages: Sequence[Message]) -> Batch:
        """Decode ``messages`` (in offset order per partition), without any effect.

        Called in a thread of its own, one call at a time, while ``apply`` processes the batch before.

        Raises:
            DependencyUnavailable: call again later with the same ``messages``.

        """
        ...

    async def apply(self, batch: Batch, /) -> Effects:
        """Write the batch's effects.

        Raises:
            DependencyUnavailable: call again later with the same ``batch``.

        """
        ...
