"""What a stage or a sink is to the batch loop (:mod:`infra.kafka.batches`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from confluent_kafka import Message

from infra.kafka.producer import Output

Prepared = TypeVar("Prepared")


@dataclass(frozen=True, slots=True)
class Effects:
    """What a batch came to: ``outputs`` to deliver before the commit, and how many of its records were ``dead``.

    Outputs that cost something to make are given as a function: it is called while the next batch is being applied.
    """

    outputs: Sequence[Output] | Callable[[], Sequence[Output]] = ()
    dead: int = 0

    def to_deliver(self) -> Sequence[Output]:
        """Return the outputs, made now where they are not made yet."""
        return self.outputs() if callable(self.outputs) else self.outputs


class Processor(Protocol[Prepared]):
    """What a stage or a sink is to the loop. Both methods may be called again with the same records after a crash."""

    def prepare(self, messages: Sequence[Message]) -> Prepared:
        """Decode ``messages`` (in offset order per partition), without any effect.

        Called in a thread of its own, one call at a time, while ``apply`` is at work on the batch before.

        Raises DependencyAway to be called again with the same ``messages`` after a while.
        """
        ...

    async def apply(self, prepared: Prepared) -> Effects:
        """Have the effect. Raises DependencyAway to be called again with the same ``prepared`` after a while."""
        ...
