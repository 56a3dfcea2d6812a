"""Delivering records: a confluent-kafka producer whose deliveries can be awaited.

Guarantee: when :meth:`Deliverer.deliver` returns, every record is on the broker with ``acks=all``. It was written by
an idempotent producer, so a retry inside the client neither doubles nor reorders. When it raises, any of the records
may or may not be there: deliver them again, consumers are idempotent.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from infra.errors import DependencyAway
from infra.runtime import log

_POLL_S = 0.05
_FULL_S = 0.005

Headers = Sequence[tuple[str, bytes]]


class Output(NamedTuple):
    """A record to produce. ``partition`` -1: by the key (murmur2, as Java clients do)."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers | None = None
    partition: int = -1


class Delivery(NamedTuple):
    """What became of one output: its coordinates, or the error (then ``partition`` and ``offset`` are -1)."""

    partition: int
    offset: int
    error: str = ""


class _Pending:
    """Counts down the deliveries of one call; ends the waiting future from the polling thread."""

    def __init__(self, count: int, loop: asyncio.AbstractEventLoop) -> None:
        self._left = count
        self._loop = loop
        self.done: asyncio.Future[None] = loop.create_future()
        self.error: KafkaError | None = None

    def settled(self, error: KafkaError | None, _: Message) -> None:
        if error is not None:
            self.error = error
        self._left -= 1
        if not self._left:
            self._loop.call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


class Deliverer:
    """Owns a producer and the thread that serves its callbacks; close it.

    ``timeout_s`` bounds a delivery (the front door must answer); 0 waits for as long as the broker is away (workers).
    """

    def __init__(self, bootstrap: str, *, timeout_s: float = 0, config: Mapping[str, Any] | None = None) -> None:
        self._logger = log("producer")
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "acks": "all",
                "enable.idempotence": True,
                "partitioner": "murmur2_random",
                "compression.type": "lz4",
                "linger.ms": 5,
                "batch.size": 1_000_000,
                "queue.buffering.max.messages": 500_000,
                "queue.buffering.max.kbytes": 524_288,
                # The largest dead letter. The client counts what is not compressed yet, a topic what is.
                "message.max.bytes": 17_000_000,
                "message.timeout.ms": int(timeout_s * 1000),
                "socket.nagle.disable": True,
                "error_cb": self._on_error,
            }
            | dict(config or {})
        )
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="producer-poll", daemon=True)
        self._thread.start()

    async def deliver(self, outputs: Sequence[Output]) -> None:
        """Produce ``outputs`` in order and wait until the broker has them all.

        Raises:
            DependencyAway: Kafka did not take them in time; call again with the same outputs.
            KafkaException: the broker refuses one for good (too large, no such topic, not allowed).

        """
        if not outputs:
            return
        pending = _Pending(len(outputs), asyncio.get_running_loop())
        await self._enqueue(outputs, repeat(pending.settled))
        await pending.done
        if pending.error is not None:
            raise _as_exception(pending.error)

    async def deliver_each(self, outputs: Sequence[Output]) -> list[Delivery]:
        """Produce ``outputs`` and return what became of each, in the same order."""
        if not outputs:
            return []
        pending = _Pending(len(outputs), asyncio.get_running_loop())
        results: list[Delivery] = [Delivery(-1, -1, "not delivered")] * len(outputs)

        def settle(index: int) -> Any:
            def settled(error: KafkaError | None, message: Message) -> None:
                if error is None:
                    results[index] = Delivery(message.partition() or 0, message.offset() or 0)
                else:
                    results[index] = Delivery(-1, -1, error.name())
                pending.settled(None, message)

            return settled

        await self._enqueue(outputs, [settle(i) for i in range(len(outputs))])
        await pending.done
        return results

    async def _enqueue(self, outputs: Sequence[Output], callbacks: Iterable[Any]) -> None:
        produce = self._producer.produce
        for (topic, key, value, headers, partition), callback in zip(outputs, callbacks, strict=False):
            while True:
                try:
                    if headers:
                        produce(topic, value, key, partition, on_delivery=callback, headers=list(headers))
                    else:
                        produce(topic, value, key, partition, on_delivery=callback)
                    break
                except BufferError:
                    await asyncio.sleep(_FULL_S)  # the polling thread makes room

    def _poll(self) -> None:
        while not self._closing.is_set():
            self._producer.poll(_POLL_S)

    def _on_error(self, error: KafkaError) -> None:
        self._logger.warning("kafka", extra={"fields": {"error": error.name(), "detail": error.str()}})

    async def close(self, timeout_s: float = 5) -> None:
        """Wait at most ``timeout_s`` seconds for what is still in flight, then let go."""
        await asyncio.to_thread(self._producer.flush, timeout_s)
        self._closing.set()
        await asyncio.to_thread(self._thread.join)


def _as_exception(error: KafkaError) -> Exception:
    away = (KafkaError._MSG_TIMED_OUT, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT)  # noqa: SLF001 - librdkafka's own names
    if error.code() in away or error.retriable():
        return DependencyAway("Kafka", error.name())
    refused: Exception = KafkaException(error)
    return refused
