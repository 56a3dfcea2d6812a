"""Faust's consumer with the offset ledger of :mod:`streams.faust.offsets` in place of Faust's own bookkeeping.

Guarantees: those of the ledger, also during rebalances. A rebalance waits at most ``_REVOKE_S`` seconds for the records
in flight and commits them; records that are not finished by then are processed again. Faust drops records that it
fetched before a rebalance and does not seek back; the ledger detects the gap. Records are read as read_committed: those
of aborted transactions are never seen, and an open transaction is no stall. Where retention has deleted records that
were not read, consumption continues at the first record that is left, with a warning.

This module overrides private members of Faust and aiokafka. docs/decisions/0004 lists which, why, and which tests
detect a change of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from typing import Any

from aiokafka.coordinator.assignors.roundrobin import (  # type: ignore[import-untyped]
    RoundRobinPartitionAssignor,
)
from aiokafka.errors import IllegalStateError, KafkaError  # type: ignore[import-untyped]
from faust.transport.drivers import aiokafka as driver
from mode.utils.futures import notify

from infra.runtime import log
from streams.faust import record_batches
from streams.faust.offsets import Admission, OffsetLedger
from streams.faust.ordered import OrderedPipe, exit_at_once

_REVOKE_S = 8.0


class Assignor(RoundRobinPartitionAssignor):
    """aiokafka's assignor, which ends the process where aiokafka would assign no partition to anybody.

    Right after a broker has started, the leader of the group may have no metadata of the topic. The group would then
    stay without partitions, and nothing would show it. After the restart the metadata is there.
    """

    @classmethod
    def assign(cls, cluster: Any, members: Mapping[str, Any]) -> Any:
        """Assign the partitions of all topics to the members."""
        topics = {topic for member in members.values() for topic in member.subscription}
        if unknown := sorted(topic for topic in topics if cluster.partitions_for_topic(topic) is None):
            exit_at_once(f"no metadata of {', '.join(unknown)} to assign its partitions")
        return super().assign(cluster, members)


class _Thread(driver.AIOKafkaConsumerThread):
    """The thread that runs aiokafka's consumer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._assignment: Any = None
        self._read_to: dict[Any, int] = {}  # of the assignment: every record before it was returned, or never existed

    def _create_worker_consumer(self, transport: Any) -> Any:
        record_batches.install()
        consumer = super()._create_worker_consumer(transport)
        consumer._partition_assignment_strategy = (Assignor,)  # noqa: SLF001 - Faust has no setting for it
        consumer._isolation_level = "read_committed"  # noqa: SLF001 - Faust sets it only together with its transactions
        return consumer

    def highwater(self, tp: Any) -> Any:
        """Return the end of what can be read: an open transaction and what follows it cannot."""
        return self._ensure_consumer().last_stable_offset(tp)

    async def seek_to_committed(self) -> Mapping[Any, int]:
        """Seek to the first offsets to read: see :meth:`_seek_to_start`."""
        offsets: Mapping[Any, int] = await self.call_thread(self._seek_to_start)
        return offsets

    async def _seek_to_start(self) -> dict[Any, int]:
        """Seek to the committed offsets. Without one, or where it is no longer in the log, seek to the beginning."""
        consumer = self._ensure_consumer()
        partitions = list(consumer.assignment())
        committed = {tp: await consumer.committed(tp) for tp in partitions}
        beginnings = await consumer.beginning_offsets(partitions) if partitions else {}
        ends = await consumer.end_offsets(partitions) if partitions else {}
        starts = {tp: _start(committed[tp], beginnings[tp], ends[tp]) for tp in partitions}
        moved = {tp: start for tp, start in starts.items() if committed[tp] not in (None, start)}
        for tp, start in moved.items():
            fields = {"partition": str(tp), "committed": committed[tp], "from": start}
            log("faust").warning(
                "the committed offset is not in the log; continuing at its start", extra={"fields": fields}
            )
        with suppress(IllegalStateError):  # a partition was revoked in the meantime
            for tp, start in starts.items():
                consumer.seek(tp, start)
        self._assignment, self._read_to = _assignment(consumer), dict(starts)
        if moved:
            await self._commit(moved)
        return starts

    def seek(self, partition: Any, offset: int) -> None:
        """Read ``partition`` from ``offset``; called in this thread."""
        super().seek(partition, offset)
        self._read_to[partition] = offset

    async def _fetch_records(self, consumer: Any, *args: Any, **kwargs: Any) -> Any:
        records = await super()._fetch_records(consumer, *args, **kwargs)
        # No await from here on: the positions are those after ``records``.
        if self.consumer.flow_active and (empty := self._empty_ranges(consumer, records)):
            self.consumer.loop.call_soon_threadsafe(self.consumer.skip, empty)  # before the records are delivered
        return records

    def _empty_ranges(self, consumer: Any, records: Mapping[Any, Any]) -> dict[Any, list[tuple[int, int]]]:
        """Return the ranges of offsets before the consumer's positions that hold no record, since the last call."""
        assignment, found = _assignment(consumer), {}
        if assignment is None or assignment is not self._assignment:
            return {}
        for tp, before in list(self._read_to.items()):
            state = assignment.state_value(tp)
            if state is None or not state.has_valid_position:
                continue
            if state.position < before:
                exit_at_once(f"{tp}: the log ends before {before}; it was truncated or created anew")
            ranges, next_offset = [], before
            for record in records.get(tp, ()):
                if record.offset > next_offset:
                    ranges.append((next_offset, record.offset))
                next_offset = record.offset + 1
            if state.position > next_offset:
                ranges.append((next_offset, state.position))
            self._read_to[tp] = state.position
            if ranges:
                found[tp] = ranges
        return found

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

    def skip(self, empty: Mapping[Any, list[tuple[int, int]]]) -> None:
        """Note ranges of offsets that hold no record."""
        for tp, ranges in empty.items():
            self._ledger.skip(tp, ranges)

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
        """Return (committed offset, end of what can be read) of each assigned partition whose end is known."""
        offsets: dict[Any, tuple[int, int]] = {}
        for tp in self.assignment():
            with suppress(Exception):  # the consumer's thread may change the assignment at the same time
                end = self.highwater(tp)
                if end is not None:
                    offsets[tp] = (self._committed_offset.get(tp) or 0, end)
        return offsets


def _assignment(consumer: Any) -> Any:
    subscription = consumer._subscription.subscription  # noqa: SLF001 - there is no public way to read a position at once
    return None if subscription is None else subscription.assignment


def _start(committed: int | None, beginning: int, end: int) -> int:
    """Return the first offset to read. ``committed`` may be out of the log: by retention, or in a topic made anew."""
    return beginning if committed is None or not beginning <= committed <= end else committed
