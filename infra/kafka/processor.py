"""The interface of a stage or sink that the batch loop (:mod:`infra.kafka.batches`) runs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Protocol, TypeVar

from confluent_kafka import Message

from infra.kafka.producer import Output

Batch = TypeVar("Batch")


# Records to deliver. Those that are expensive to build are a function, which is called while the next part is applied.
Outputs = Sequence[Output] | Callable[[], Sequence[Output]]


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

    def apply(self, batch: Batch, /) -> AsyncGenerator[Outputs, None]:
        """Write the batch's effects, and yield the outputs of each part of it when its effects are written.

        Outputs are delivered in the order in which they are yielded, while the next part is applied; at most one part
        waits. So a batch whose outputs are large has to be applied in parts. Its offsets are committed after the last.

        Raises:
            DependencyUnavailable: the loop calls again, with the same ``batch``; parts may have been delivered.

        """
        ...
