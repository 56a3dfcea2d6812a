"""Delivers records: a confluent-kafka producer whose deliveries can be awaited.

Guarantees: when :meth:`Deliverer.deliver` returns, every record is on the broker with ``acks=all``. The producer is
idempotent, so its internal retries neither duplicate nor reorder records. When it raises, it is unknown which records
are on the broker: deliver all of them again. Consumers are idempotent.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message

from infra.errors import ClientFailed, DependencyUnavailable
from infra.kafka.client import OnFatal, producer
from infra.kafka_settings import KafkaSettings

_POLL_S = 0.05
_FULL_S = 0.005
_UNAVAILABLE = (KafkaError._MSG_TIMED_OUT, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT)  # noqa: SLF001 - librdkafka's own names

Headers = Sequence[tuple[str, bytes]]


class Output(NamedTuple):
    """A record to produce. ``partition`` -1: by the key (murmur2, as Java clients do)."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers | None = None
    partition: int = -1


class Delivery(NamedTuple):
    """The result of one output: its coordinates, or the error (then ``partition`` and ``offset`` are -1)."""

    partition: int
    offset: int
    error: str = ""


class _Pending:
    """Counts down the deliveries of one call; resolves its future from the polling thread."""

    def __init__(self, count: int, loop: asyncio.AbstractEventLoop) -> None:
        self._left = count
        self._loop = loop
        self.done: asyncio.Future[None] = loop.create_future()
        self.error: KafkaError | None = None

    def count_down(self, error: KafkaError | None, _: Message) -> None:
        if error is not None:
            self.error = error
        self._left -= 1
        if not self._left:
            self._loop.call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


class Deliverer:
    """Owns a producer and the thread that serves its callbacks; close it. ``name`` is the name of the process.

    ``timeout_s`` is the timeout of a delivery, in seconds (the API must respond in time); 0: retry for as long as Kafka
    is unavailable (workers). ``on_fatal``: see :mod:`infra.kafka.client`; after it was called every delivery fails.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        name: str,
        *,
        timeout_s: float = 0,
        config: Mapping[str, Any] | None = None,
        on_fatal: OnFatal | None = None,
    ) -> None:
        own = {
            "batch.size": 1_000_000,
            "queue.buffering.max.messages": 100_000,
            "queue.buffering.max.kbytes": 65_536,
            # Fits the largest dead letter. The client counts uncompressed bytes, a topic counts compressed ones.
            "message.max.bytes": 17_000_000,
            "message.timeout.ms": int(timeout_s * 1000),
        }
        self._name = name
        self._on_fatal = on_fatal
        self._producer = producer(settings, name, config=own | dict(config or {}), on_fatal=on_fatal)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="producer-poll", daemon=True)
        self._thread.start()

    async def deliver(self, outputs: Sequence[Output]) -> None:
        """Produce ``outputs`` in order and wait until the broker has them all.

        Raises:
            DependencyUnavailable: Kafka did not confirm them in time; call again with the same outputs.
            KafkaException: the broker rejects one permanently (too large, no such topic, not allowed).

        """
        if not outputs:
            return
        pending = _Pending(len(outputs), asyncio.get_running_loop())
        await self._enqueue(outputs, repeat(pending.count_down))
        await pending.done
        if pending.error is not None:
            raise _as_exception(pending.error)

    async def deliver_each(self, outputs: Sequence[Output]) -> list[Delivery]:
        """Produce ``outputs`` and return the result of each, in the same order."""
        if not outputs:
            return []
        pending = _Pending(len(outputs), asyncio.get_running_loop())
        results: list[Delivery] = [Delivery(-1, -1, "not delivered")] * len(outputs)

        def callback(index: int) -> Any:
            def delivered(error: KafkaError | None, message: Message) -> None:
                if error is None:
                    results[index] = Delivery(message.partition() or 0, message.offset() or 0)
                else:
                    results[index] = Delivery(-1, -1, error.name())
                pending.count_down(None, message)

            return delivered

        await self._enqueue(outputs, [callback(i) for i in range(len(outputs))])
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
            try:
                self._producer.poll(_POLL_S)
            except Exception as error:  # noqa: BLE001 - librdkafka's fatal error, or a bug in a callback
                # Polling continues: it makes the deliveries in flight fail, which would otherwise never end.
                if self._on_fatal is not None:
                    self._on_fatal(ClientFailed(f"the Kafka producer of {self._name} failed permanently: {error}"))

    async def close(self, timeout_s: float = 5) -> None:
        """Wait at most ``timeout_s`` seconds for the records in flight, then end the thread."""
        await asyncio.to_thread(self._producer.flush, timeout_s)
        self._closing.set()
        await asyncio.to_thread(self._thread.join)


def _as_exception(error: KafkaError) -> Exception:
    if error.code() in _UNAVAILABLE or error.retriable():
        return DependencyUnavailable("Kafka", error.name())
    refused: Exception = KafkaException(error)
    return refused
