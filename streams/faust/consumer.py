"""Faust's consumer with the offset ledger of :mod:`streams.faust.offsets` in place of Faust's own bookkeeping.

Guarantees: those of the ledger, also during rebalances. A rebalance waits at most ``_REVOKE_S`` seconds for the records
in flight and commits them; records that are not finished by then are processed again. Faust drops records that it
fetched before a rebalance and does not seek back; the ledger detects the gap.

This module overrides private members of Faust and aiokafka. docs/decisions/0004 says which, why, and which tests
detect a change of them.
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
    """The thread that runs aiokafka's consumer."""

    async def seek_to_committed(self) -> Mapping[Any, int]:
        """Seek to the committed offsets, and without one to the beginning, which aiokafka does not do."""
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
            # The next commit includes these offsets. If the partitions were revoked, their new owner processes the
            # records again.
            log("faust").warning("commit failed", extra={"fields": {"error": type(error).__name__}})
            return False
        return True


class Consumer(driver.Consumer):
    """Faust's consumer with an :class:`streams.faust.offsets.OffsetLedger`."""

    pipe: OrderedPipe

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._ledger = OffsetLedger()
        super().__init__(*args, **kwargs)

    def _new_consumer_thread(self) -> _Thread:
        return _Thread(self, loop=self.loop, beacon=self.beacon)

    async def seek_to_committed(self) -> Mapping[Any, int]:
        """Seek to the committed offsets of the group, and set them as the first offsets in the ledger."""
        assignment = self._ledger.assignment
        offsets: Mapping[Any, int] = await super().seek_to_committed()
        self._ledger.start(offsets, assignment)
        return offsets

    async def _seek(self, partition: Any, offset: int) -> None:
        # Faust calls this in the event loop's thread, but the consumer must be used in its own.
        await self._thread.call_thread(self._thread.seek, partition, offset)

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[Any, Any]]:  # noqa: ASYNC109 - Faust's signature
        """Yield the fetched messages, each with its fetch round in ``checksum``, a field that Faust does not use."""
        fetch_round = self._ledger.round
        async for tp, message in super().getmany(timeout):
            message.checksum = fetch_round
            # Faust drops messages below its read offset; the ledger must decide about every message.
            self._read_offset[tp] = min(self._read_offset[tp] or 0, message.offset)
            yield tp, message

    async def accept(self, message: Any) -> bool:
        """Return whether ``message`` is the next record of its partition; if so, it is open until it is acked.

        Records before it may be missing, since Faust drops fetched records in a rebalance. The consumer then seeks back
        to the first missing record.
        """
        tp = message.tp
        admission = self._ledger.admit(tp, message.offset, message.checksum)
        if admission is Admission.READ_AGAIN:
            with suppress(IllegalStateError):  # the partition was revoked: its new owner reads it
                await self.seek(tp, self._ledger.expected(tp))
        return admission is Admission.ACCEPTED

    def ack(self, message: Any) -> bool:
        """Mark a message as acked: its outputs are on the broker."""
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
        assigned = {tp: offset for tp, offset in offsets.items() if tp in self.assignment()}
        if not assigned or not await self._commit(assigned):
            return False
        self._committed_offset.update(assigned)
        return True

    async def on_partitions_revoked(self, revoked: set[Any]) -> None:
        """Release partitions and clear the ledger, after Faust has called :meth:`wait_empty`."""
        await super().on_partitions_revoked(revoked)
        self._ledger.assign()

    async def on_partitions_assigned(self, assigned: set[Any], generation_id: int = 0) -> None:
        """Clear the ledger and accept records of the assigned partitions."""
        self._ledger.assign()
        await self.pipe.resume()
        await super().on_partitions_assigned(assigned, generation_id)

    async def wait_empty(self) -> None:
        """Wait for the records in flight and commit them, in at most two times ``_REVOKE_S`` seconds."""
        await self.pipe.pause(_REVOKE_S)
        self._unacked_messages.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self.commit(), _REVOKE_S)

    def verify_event_path(self, now: float, tp: Any) -> None:
        """Do nothing: :mod:`streams.faust.watchdog` detects stalls; Faust's check races with the consumer's thread."""

    def progress(self) -> dict[Any, tuple[int, int]]:
        """Return (committed offset, end offset) of each assigned partition whose end is known."""
        offsets: dict[Any, tuple[int, int]] = {}
        for tp in self.assignment():
            with suppress(Exception):  # the consumer's thread may change the assignment at the same time
                end = self.highwater(tp)
                if end is not None:
                    offsets[tp] = (self._committed_offset.get(tp) or 0, end)
        return offsets
