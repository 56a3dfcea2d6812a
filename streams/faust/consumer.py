"""Faust's consumer with our own bookkeeping of offsets (:mod:`streams.faust.offsets`) in place of Faust's.

Guarantees: those of the ledger, through rebalances too. A rebalance waits for what is in flight, at most ``_REVOKE_S``
seconds, and commits it; the rest is processed again. (Faust drops what it fetched before a rebalance without seeking
back; the ledger notices.)

This file overrides private members of Faust and aiokafka: docs/decisions/0005 says which, why, and what holds them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from typing import Any

from aiokafka.errors import IllegalStateError, KafkaError  # type: ignore[import-untyped]
from faust.transport.drivers import aiokafka as driver
from mode.utils.futures import notify

from infra.runtime import log
from streams.faust.offsets import Admission, OffsetLedger
from streams.faust.ordered import OrderedPipe

_REVOKE_S = 8.0


class _Thread(driver.AIOKafkaConsumerThread):
    """aiokafka's side, in its own thread."""

    async def seek_to_committed(self) -> Mapping[Any, int]:
        """Seek to the committed offsets, and to the beginning where there is none (aiokafka leaves those alone)."""
        offsets: Mapping[Any, int] = await self.call_thread(self._seek_to_start)
        return offsets

    async def _seek_to_start(self) -> dict[Any, int]:
        consumer = self._ensure_consumer()
        offsets = dict(await consumer.seek_to_committed())
        unset = [tp for tp, offset in offsets.items() if not offset or offset < 0]
        for tp, beginning in (await consumer.beginning_offsets(unset)).items() if unset else ():
            consumer.seek(tp, beginning)
            offsets[tp] = beginning
        return offsets

    async def _commit(self, offsets: Mapping[Any, int]) -> bool:
        consumer = self._ensure_consumer()
        try:
            await consumer.commit({driver.ensure_aiokafka_TP(tp): offset for tp, offset in offsets.items()})
        except KafkaError as error:
            # The next commit covers it; if the partitions went, their new owner does the records again.
            log("faust").warning("commit failed", extra={"fields": {"error": type(error).__name__}})
            return False
        return True


class Consumer(driver.Consumer):
    """Faust's consumer with our bookkeeping of offsets: see :mod:`streams.faust.offsets`."""

    pipe: OrderedPipe

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._ledger = OffsetLedger()
        super().__init__(*args, **kwargs)

    def _new_consumer_thread(self) -> _Thread:
        return _Thread(self, loop=self.loop, beacon=self.beacon)

    async def seek_to_committed(self) -> Mapping[Any, int]:
        """Seek to the group's committed offsets: from now on the first record of each partition is known."""
        assignment = self._ledger.assignment
        offsets: Mapping[Any, int] = await super().seek_to_committed()
        self._ledger.start(offsets, assignment)
        return offsets

    async def _seek(self, partition: Any, offset: int) -> None:
        await self._thread.call_thread(self._thread.seek, partition, offset)  # Faust calls it from the wrong thread

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[Any, Any]]:  # noqa: ASYNC109 - Faust's signature
        """Yield what was fetched, each message with its round of fetching (in ``checksum``, otherwise unused)."""
        fetched_in = self._ledger.round
        async for tp, message in super().getmany(timeout):
            message.checksum = fetched_in
            self._read_offset[tp] = min(self._read_offset[tp] or 0, message.offset)  # Faust drops what is below it
            yield tp, message

    async def accept(self, message: Any) -> bool:
        """Return whether ``message`` is the next record of its partition; it then counts as open until it is acked.

        In a rebalance Faust drops fetched records, some of them without a trace: the partition is then read again.
        """
        tp = message.tp
        admission = self._ledger.admit(tp, message.offset, message.checksum)
        if admission is Admission.READ_AGAIN:
            with suppress(IllegalStateError):  # the partition was revoked: its next owner reads it
                await self.seek(tp, self._ledger.expected(tp))
        return admission is Admission.ACCEPTED

    def ack(self, message: Any) -> bool:
        """Note that a record's effects are durable."""
        if message.acked:
            return False
        message.acked = True
        self._unacked_messages.discard(message)
        self._ledger.ack(message.tp, message.offset)
        self._n_acked += 1
        notify(self._waiting_for_ack)
        return True

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterator[Any]:
        return (tp for tp in self._ledger.partitions() if topics is None or tp in topics or tp.topic in topics)

    def _new_offset(self, tp: Any) -> int | None:
        return self._ledger.committable(tp)

    async def _commit_offsets(self, offsets: Mapping[Any, int], start_new_transaction: bool = True) -> bool:
        del start_new_transaction  # there are no transactions here
        ours = {tp: offset for tp, offset in offsets.items() if tp in self.assignment()}
        if not ours or not await self._commit(ours):
            return False
        self._committed_offset.update(ours)
        return True

    async def on_partitions_revoked(self, revoked: set[Any]) -> None:
        """Give partitions up: Faust calls :meth:`wait_empty` in the middle, only then is the bookkeeping forgotten."""
        await super().on_partitions_revoked(revoked)
        self._ledger.assign()

    async def on_partitions_assigned(self, assigned: set[Any], generation_id: int = 0) -> None:
        """Take partitions on."""
        self._ledger.assign()
        await self.pipe.resume()
        await super().on_partitions_assigned(assigned, generation_id)

    async def wait_empty(self) -> None:
        """Finish what is in flight and commit it, in bounded time (Faust's own waits without end)."""
        await self.pipe.pause(_REVOKE_S)
        self._unacked_messages.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self.commit(), _REVOKE_S)

    def verify_event_path(self, now: float, tp: Any) -> None:
        """Do nothing: stalls are :mod:`streams.faust.watchdog`'s; Faust's check races with the consumer's thread."""

    def progress(self) -> dict[Any, tuple[int, int]]:
        """Return for each partition of ours (committed, end), as far as they are known."""
        found: dict[Any, tuple[int, int]] = {}
        for tp in self.assignment():
            with suppress(Exception):  # the assignment may change in the consumer's thread meanwhile
                end = self.highwater(tp)
                if end is not None:
                    found[tp] = (self._committed_offset.get(tp) or 0, end)
        return found
