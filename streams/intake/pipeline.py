"""Intake: every lead event becomes part of one trusted record, in one Postgres transaction a batch.

decode → validate → dedupe → identify → merge → route

A crash before the transaction commits leaves nothing behind. A crash after it, before the records are delivered, leads
to a redelivery with the same coordinates: what was decided is read back and told again. So everything that is decided
is told at least once, and a version of a lead is made exactly once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg
import orjson
from confluent_kafka import Message

from infra import metrics
from infra.clock import DAY_US, Clock, now_us
from infra.kafka.dead_letters import dead_letter
from infra.kafka.processor import Effects
from infra.kafka.producer import Output
from infra.outcomes import Dead, Problem, Reason, What
from infra.postgres.pool import transaction
from infra.runtime import log
from schemas.codec import Codec
from streams.intake import store
from streams.intake.decode import decode
from streams.intake.dedupe import Receipt, dedupe
from streams.intake.event import Event, Identity
from streams.intake.identity import Identified, identify
from streams.intake.merge import ERASURE, Lead, absorb, merge
from streams.intake.route import Router
from streams.intake.store import Change, Contended, Merge
from streams.intake.validate import validate

STAGE = "intake"
# Bytes of a lead's fields as JSON, with those of the leads that become part of it and of the event: what intake tells
# holds them up to three times over, and has to fit one record of Kafka (max.message.bytes in topics.toml).
_LARGEST_LEAD = 1 << 20


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch after decode and validate: its events, and the dead letters of what is none."""

    events: list[Event]
    dead: list[Output]


class Intake:
    """The processor of ``leads.received``. ``now`` is the clock, in microseconds since 1970."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        codec: Codec,
        router: Router,
        *,
        max_event_bytes: int,
        max_ahead_s: int,
        now: Clock = now_us,
    ) -> None:
        self._pool = pool
        self._codec = codec
        self._router = router
        self._max_bytes = max_event_bytes
        self._max_ahead = max_ahead_s * 1_000_000
        self._now = now
        self._months_at = 0  # when to look next whether the months to come have their partitions
        self._log = log(STAGE)

    def prepare(self, messages: Sequence[Message]) -> Prepared:
        """Decode and validate."""
        now = self._now()
        prepared = Prepared([], [])
        for message in messages:
            event = self._read(message, now)
            if isinstance(event, Dead):
                prepared.dead.append(dead_letter(message, STAGE, event))
                metrics.OUTCOMES.labels(STAGE, What.DEAD.value, event.reason.value).inc()
            else:
                prepared.events.append(event)
        return prepared

    def _read(self, message: Message, now: int) -> Event | Dead:
        decoded = decode(message, self._codec, self._max_bytes)
        return decoded if isinstance(decoded, Dead) else validate(decoded, message, now, self._max_ahead)

    async def apply(self, prepared: Prepared) -> Effects:
        """Decide the batch in one transaction, then say who has to know."""
        if not prepared.events:
            return Effects(prepared.dead, len(prepared.dead))
        await self._make_months()
        events, refused = prepared.events, list[Event]()
        while True:
            try:
                async with transaction(self._pool) as connection:
                    changes, duplicates = await _decide(connection, events, self._now())
                break
            except _TooLarge as found:
                # Without them from the beginning: what is dead binds no identity, merges nobody and makes no lead.
                refused += found.events
                offsets = {(event.topic, event.partition, event.offset) for event in found.events}
                events = [event for event in events if (event.topic, event.partition, event.offset) not in offsets]
            except (Contended, *store.CONTENDED) as contended:
                # Another worker met the same people in the same moment; it is done now, so look again.
                self._log.info("contended", extra={"fields": {"why": type(contended).__name__}})
        metrics.OUTCOMES.labels(STAGE, What.ACCEPTED.value, "").inc(len(changes))
        metrics.OUTCOMES.labels(STAGE, What.DUPLICATE.value, "duplicate_event").inc(len(duplicates))
        metrics.OUTCOMES.labels(STAGE, What.DEAD.value, Reason.TOO_LARGE.value).inc(len(refused))
        dead = prepared.dead + [dead_letter(event.message, STAGE, _GROWN) for event in refused]
        now = self._now()

        def outputs() -> list[Output]:
            return self._router.route(changes, now) + self._router.duplicates(duplicates, now) + dead

        return Effects(outputs, len(dead))

    async def _make_months(self) -> None:
        """Look at the start and once a day: without the month's partitions nothing could be decided."""
        if (now := self._now()) >= self._months_at:
            async with transaction(self._pool) as connection:
                await store.make_months(connection)
            self._months_at = now + DAY_US


class _TooLarge(Exception):  # noqa: N818 - it asks for another try without them
    """The events whose leads would grow too large with them."""

    def __init__(self, events: list[Event]) -> None:
        super().__init__(f"{len(events)} events")
        self.events = events


async def _decide(connection: asyncpg.Connection, events: list[Event], now: int) -> tuple[list[Change], list[Event]]:
    """Return what changed and what was a duplicate; it is all in the database when the transaction commits.

    Raises _TooLarge where a lead would outgrow a record of Kafka: roll back and decide without those events.
    """
    await store.take_turns(connection, now)
    found = dedupe(events, await store.receipts_of(connection, events))
    changes = await _again(connection, found.redelivered)
    if found.new:
        known = await store.leads_of(connection, (i for event in found.new for i in event.identities))
        who = identify(found.new, known, now)
        # Identities first: whoever binds the same one waits here for the other to commit, and then looks again.
        await store.bind(connection, who.bindings)
        leads = await store.lock(connection, {*who.lead_ids, *who.merges} - who.fresh)
        await _look_up_touches(connection, found.new, who, leads)
        fresh, merges, large = _change(found.new, who.lead_ids, who.merges, leads, now)
        if large:
            raise _TooLarge(_for_sure(large, fresh, known))
        await store.record_merges(connection, merges)
        await store.save(connection, leads, who.fresh, now)
        await store.remember(connection, fresh, now)
        changes += fresh
    return changes, found.duplicates


async def _look_up_touches(
    connection: asyncpg.Connection, events: list[Event], who: Identified, leads: Mapping[str, Lead]
) -> None:
    """Give their touches to those of ``leads`` that are erased now, or merged with one that once was."""
    to_erase = {lead_id for event, lead_id in zip(events, who.lead_ids, strict=True) if event.type.name == ERASURE}
    to_erase |= {to for loser, to in who.merges.items() if leads[loser].erased or leads[to].erased}
    wanted = to_erase | {loser for loser, to in who.merges.items() if to in to_erase}
    for lead_id, touches in (await store.touches_of(connection, wanted - who.fresh)).items():
        leads[lead_id].touches = touches


def _change(
    events: list[Event], lead_ids: list[str], merges: dict[str, str], leads: dict[str, Lead], now: int
) -> tuple[list[Change], list[Merge], list[tuple[Event, str]]]:
    """Merge ``events`` into ``leads`` (which gain the new ones), each making the next version of its lead.

    Returns the changes, the merges, and the events that are too large for their leads, with those. Where there is one
    of the latter, the rest is as if it were not there, but for whom it merges and groups: decide again without it.
    """
    losers: dict[str, list[Lead]] = {}
    for loser_id, survivor_id in merges.items():
        losers.setdefault(survivor_id, []).append(leads[loser_id])
    changes: list[Change] = []
    merged: list[Merge] = []
    large: list[tuple[Event, str]] = []
    for event, lead_id in zip(events, lead_ids, strict=True):
        lead = leads.get(lead_id)
        if lead is None:
            lead = leads[lead_id] = Lead(lead_id, event.tenant, created_at=now, touches=[])
        # The first event of the group carries the merge: from then on there is one lead.
        absorbed = losers.pop(lead_id, [])
        size = _bytes(lead.told) + sum(_bytes(loser.told) for loser in absorbed) + len(event.properties)
        if size > _LARGEST_LEAD and event.type.name != ERASURE:
            large.append((event, lead_id))
            continue
        for loser in absorbed:
            merged.append(Merge(lead, loser, event.event_id, store.snapshot(lead)))
            absorb(lead, loser)
            loser.version += 1
            loser.updated_at = now
            loser.merged_into = lead_id
            loser.told = _json(loser.attributes)
        changed = merge(lead, event)
        lead.version += 1
        lead.updated_at = now
        gone = {loser.lead_id: loser.version for loser in absorbed}
        lead.told = _json(lead.attributes)
        if size > _LARGEST_LEAD < _bytes(lead.told):
            return changes, merged, [*large, (event, lead_id)]  # an erasure that erases too little of what it merges
        told = _json(changed) if changed else "{}"
        changes.append(Change(event, lead_id, lead.version, now, changed, told, gone, lead.version, _told(lead)))
    return changes, merged, large


def _for_sure(large: list[tuple[Event, str]], changes: list[Change], known: Mapping[Identity, str]) -> list[Event]:
    """Return those of the ``large`` events that have the same lead without the others: of each lead at least one.

    One of them may be what makes another's identities the lead's; whether that one is too large shows without it.
    """
    theirs = {lead_id for _, lead_id in large}
    whose = {i: c.lead_id for c in changes if c.lead_id in theirs for i in c.event.identities} | dict(known)
    sure: list[Event] = []
    for event, lead_id in large:
        if lead_id in theirs or any(whose.get(identity) == lead_id for identity in event.identities):
            theirs.discard(lead_id)
            sure.append(event)
    return sure


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


async def _again(connection: asyncpg.Connection, redelivered: list[tuple[Event, Receipt]]) -> list[Change]:
    """Read back what was decided about records that come again after a crash; the lead may be newer by now."""
    if not redelivered:
        return []
    before = await store.decided(connection, redelivered)
    gone = [loser for _, _, merged in before.values() for loser in merged]
    leads = await store.read(connection, [*gone, *(receipt.lead_id for _, receipt in redelivered)])
    changes: list[Change] = []
    for event, (_, _, _, lead_id, version) in redelivered:
        decided_at, changed, merged = before[lead_id, version]
        losers = {loser: leads[loser].version for loser in merged}
        lead = leads[lead_id]
        lead.told = _json(lead.attributes)
        told = _json(changed)
        changes.append(Change(event, lead_id, version, decided_at, changed, told, losers, lead.version, _told(lead)))
    return changes


def _told(lead: Lead) -> str:
    """Return the lead as it is now, as JSON; the next event of the batch changes the working copy."""
    # Written by hand, for nothing in it can need an escape: ids are UUIDs, and a tenant is [a-z0-9_-].
    return (
        f'{{"lead_id":"{lead.lead_id}","tenant":"{lead.tenant}","version":{lead.version},'
        f'"merged_into":"{lead.merged_into}","created_at":{lead.created_at},"updated_at":{lead.updated_at}'
        f"{',' if lead.attributes else ''}{lead.told[1:]}"
    )


_GROWN = Dead(
    Reason.TOO_LARGE,
    (Problem("", f"with it the lead would be larger than {_LARGEST_LEAD} bytes; send fewer or shorter custom fields"),),
)


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()
