"""Intake: every lead event becomes part of one canonical record, in one Postgres transaction a batch.

decode → validate → dedupe → identify → merge → route

Guarantees: a version of a lead is made exactly once, and what was decided is published at least once.
Crash: before the commit nothing is left behind. Between the commit and the delivery of the records, the batch is
redelivered: its receipts have the same coordinates, so what was decided is read back and published again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from confluent_kafka import Message

from infra.clock import Clock, now_us, uuid7
from infra.kafka.processor import Effects
from infra.outcomes import Dead
from schemas.codec import Codec
from streams.intake.decide import Decision, DecisionInput, decide, touches_needed
from streams.intake.decode import decode
from streams.intake.dedupe import dedupe
from streams.intake.event import Event, EventBatch
from streams.intake.identity import identify
from streams.intake.route import Router
from streams.intake.store import Store
from streams.intake.transactions import TooLarge, decide_all
from streams.intake.validate import validate


class Intake:
    """The processor of ``leads.received``. ``now`` is in microseconds since 1970."""

    def __init__(
        self, store: Store, codec: Codec, router: Router, *, max_event_bytes: int, max_ahead_s: int, now: Clock = now_us
    ) -> None:
        self._store, self._router, self._now = store, router, now
        self._decode = partial(decode, codec=codec, max_bytes=max_event_bytes)
        self._validate = partial(validate, max_ahead=max_ahead_s * 1_000_000)

    def prepare(self, messages: Sequence[Message]) -> EventBatch:
        """Decode and validate. No database is needed, so it runs while the batch before is decided."""
        now, batch = self._now(), EventBatch()
        for message in messages:
            decoded = self._decode(message)  # first: the rules, and all later stages, rely on the schema's types
            event = decoded if isinstance(decoded, Dead) else self._validate(decoded, message, now)
            if isinstance(event, Dead):
                batch.dead.append(self._router.dead(message, event))
            else:
                batch.events.append(event)
        return batch

    async def apply(self, batch: EventBatch) -> Effects:
        """Decide, then route: nothing is published about a lead before the canonical record has it."""
        decided = await decide_all(batch.events, self._decide)
        dead = batch.dead + [self._router.too_large(event) for event in decided.too_large]
        return Effects(lambda: self._router.route(decided.decisions) + dead, len(dead))

    async def _decide(self, batch: Sequence[Event]) -> Decision:
        await self._store.make_months(self._now())
        async with self._store.transaction() as stored:
            now = self._now()
            # Dedupe before identify: an event that was accepted before must not bind identities or merge leads.
            events = dedupe(batch, await stored.receipts(batch, now))
            # Identify before merge: only then it is known which leads are to be locked, and which of them are one.
            owners = await stored.owners(events.new)
            who = identify(events.new, owners, now, uuid7)
            # Bind before lock: a worker that binds the same identity waits here for this commit, then looks again.
            await stored.bind(who.bindings)
            leads = await stored.lock(who.existing)
            touches = await stored.touches(touches_needed(events.new, who, leads))
            history, current = await stored.history(events.redelivered)
            signals = await stored.signal_types()
            known = DecisionInput(now, events, owners, who, leads, touches, history, current, signals)
            decision = decide(known, self._router.limits)  # merge; what cannot be published is not written
            if decision.too_large:
                raise TooLarge(decision.too_large)  # rolls back
            await stored.write(decision)
        return decision
