"""Faust's consumer with our own bookkeeping of offsets: what is open (read, not acked) and which offset comes next.

Guarantees:

- A commit never passes a record that was read and is not acked: the committed offset of a partition is its lowest open
  offset, or the one after the last record read (Faust's own rule can pass records in flight: issue #606, PR #707).
- No record is skipped, and none overtakes an earlier one: a record is accepted when it is the one after the last one
  accepted, else the partition is read again from there. Only a gap that stays (compaction, retention) is skipped.
  This also repairs Faust's rebalances, which drop fetched records without seeking back.
- A rebalance waits for what is in flight, at most ``_REVOKE_S`` seconds, and commits it; the rest is processed again.
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
from streams.faust.ordered import OrderedPipe

_REVOKE_S = 8.0
_GAP_LOOKS = 3  # a gap that is still there after so many looks is real (compaction, retention)


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
    """Faust's consumer with our bookkeeping: what is open (taken, not acked) and which offset comes next."""

    pipe: OrderedPipe

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._open: dict[Any, set[int]] = {}
        self._next: dict[Any, int] = {}
        self._looks: dict[tuple[Any, int], int] = {}
        # A round is what was fetched between two seeks: gaps in what an earlier one fetched say nothing.
        self._round = 0
        self._assigned_in = 0
        self._fresh_from: dict[Any, int] = {}
        super().__init__(*args, **kwargs)

    def _new_consumer_thread(self) -> _Thread:
        return _Thread(self, loop=self.loop, beacon=self.beacon)

    async def seek_to_committed(self) -> Mapping[Any, int]:
        """Go to where the group stands: from now on the first record of each partition is known."""
        assignment = self._assigned_in
        offsets: Mapping[Any, int] = await super().seek_to_committed()
        if assignment == self._assigned_in:  # else it is about partitions that may be somebody else's by now
            for tp, offset in offsets.items():
                self._next.setdefault(tp, offset)
        return offsets

    async def _seek(self, partition: Any, offset: int) -> None:
        await self._thread.call_thread(self._thread.seek, partition, offset)  # Faust calls it from the wrong thread

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[Any, Any]]:  # noqa: ASYNC109 - Faust's signature
        """Yield what was fetched, each message with the round it was fetched in (in ``checksum``, else not used)."""
        fetched_in = self._round
        async for tp, message in super().getmany(timeout):
            message.checksum = fetched_in
            self._read_offset[tp] = min(self._read_offset[tp] or 0, message.offset)  # Faust drops what is below it
            yield tp, message

    async def take(self, message: Any) -> bool:
        """Return whether ``message`` is the next record of its partition; it then counts as open until it is acked.

        Asked where nothing stands between the answer and the work: whatever was lost on the way here (in a rebalance
        Faust drops records, some of them silently) is noticed, and the partition is read again from there.
        """
        tp, offset = message.tp, message.offset
        expected = self._next.get(tp)
        if expected is None or offset < expected:
            return False  # nobody knows yet where to begin, or it is taken already
        if offset > expected:
            if message.checksum < self._fresh_from.get(tp, 0):
                return False  # fetched before the partition was read again
            looks = self._looks.get((tp, expected), 0)
            if looks < _GAP_LOOKS:
                self._looks[tp, expected] = looks + 1
                await self._read_again(tp, expected)
                return False
            log("faust").warning("records are gone", extra={"fields": {"at": str(tp), "from": expected, "to": offset}})
        self._open.setdefault(tp, set()).add(offset)
        self._next[tp] = offset + 1
        return True

    async def _read_again(self, tp: Any, offset: int) -> None:
        self._round += 1
        self._fresh_from[tp] = self._round
        with suppress(IllegalStateError):  # the partition has just gone: it is its next owner's business
            await self.seek(tp, offset)

    def ack(self, message: Any) -> bool:
        """Note that a record's effects are durable."""
        if message.acked:
            return False
        message.acked = True
        self._unacked_messages.discard(message)
        self._open.get(message.tp, set()).discard(message.offset)
        self._n_acked += 1
        notify(self._waiting_for_ack)
        return True

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterator[Any]:
        return (tp for tp in list(self._next) if topics is None or tp in topics or tp.topic in topics)

    def _new_offset(self, tp: Any) -> int | None:
        return min(still_open) if (still_open := self._open.get(tp)) else self._next.get(tp)

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
        self._forget()

    async def on_partitions_assigned(self, assigned: set[Any], generation_id: int = 0) -> None:
        """Take partitions on."""
        self._forget()
        await self.pipe.resume()
        await super().on_partitions_assigned(assigned, generation_id)

    def _forget(self) -> None:
        self._round += 1
        self._assigned_in = self._round
        for known in (self._open, self._next, self._looks, self._fresh_from):
            known.clear()

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
