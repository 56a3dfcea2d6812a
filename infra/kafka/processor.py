"""The interface of a stage or sink that the batch loop (:mod:`infra.kafka.batches`) runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from confluent_kafka import Message

from infra.kafka.producer import Output

Batch = TypeVar("Batch")


@dataclass(frozen=True, slots=True)
class Effects:
    """The result of a batch: the ``outputs`` to deliver before the commit, and the number of ``dead`` records.

    Outputs that are expensive to build are passed as a function, which is called while the next batch is applied.
    """

    outputs: Sequence[Output] | Callable[[], Sequence[Output]] = ()
    dead: int = 0

    def to_deliver(self) -> Sequence[Output]:
        """Return the outputs; build them if they were passed as a function."""
        return self.outputs() if callable(self.outputs) else self.outputs


class Processor(Protocol[Batch]):
    """A stage or a sink. ``Batch`` is its own type: ``prepare`` returns it, ``apply`` receives it.

    Crash: both methods are called again with the same records.
    """

    def prepare(self, messages: Sequence[Message]) -> Batch:
        """Decode ``messages`` (in offset order per partition) without side effects.

        Called in another thread, one call at a time, while ``apply`` processes the previous batch.

        Raises:
            DependencyUnavailable: the loop calls again, with the same ``messages``.

        """
        ...

    async def apply(self, batch: Batch, /) -> Effects:
        """Write the batch's effects.

        Raises:
            DependencyUnavailable: the loop calls again, with the same ``batch``.

        """
        ...
