"""The flow of intake: merges each batch of lead events into the canonical record, in one Postgres transaction.

decode → validate → dedupe → suppress → identify → merge → route

Guarantees: each version of a lead is made exactly once and published at least once.
Crash: before the commit nothing is stored. After the commit and before the delivery, the batch is redelivered. Its
receipts have the same coordinates, so its decisions are read from Postgres and published again.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from confluent_kafka import Message

from infra.clock import Clock, now_us, uuid7
from infra.kafka.processor import Outputs
from infra.outcomes import Dead
from infra.tenants import Tenants
from schemas.codec import Codec
from streams.intake import commands
from streams.intake.decide import decide, reported_fields, reported_leads, touches_needed
from streams.intake.decision import Decision, DecisionInput, LeadRow, Oversize
from streams.intake.decode import decode
from streams.intake.dedupe import Reused, dedupe
from streams.intake.erasure import Follows, erasures_of, followed_erasure
from streams.intake.event import LEAD, DeadRecord, Event, EventBatch, Identity
from streams.intake.identity import changed_holders, holders_needed, identify
from streams.intake.identity_policy import Policies, default_policy
from streams.intake.part_size import Cut, PartSize
from streams.intake.route import Router, origin_of
from streams.intake.store import Contended, Store, Transaction
from streams.intake.suppress import Suppression, admit, erased_owners, late, lifted_leads, unowned
from streams.intake.transactions import Late, TooLarge, decide_in_parts
from streams.intake.validate import of_tenant, validate


class Intake:
    """The batch loop's processor of ``leads.received``. ``now`` returns microseconds since 1970.

    ``tenants``: without it every tenant is known.
    """

    def __init__(
        self,
        store: Store,
        codec: Codec,
        router: Router,
        *,
        max_event_bytes: int,
        max_ahead_s: int,
        policies: Policies = default_policy,
        now: Clock = now_us,
        tenants: Tenants | None = None,
    ) -> None:
        self._store, self._router, self._policies, self._now = store, router, policies, now
        self._decode = partial(decode, codec=codec, max_bytes=max_event_bytes)
        self._validate = partial(validate, max_ahead=max_ahead_s * 1_000_000, policies=policies)
        self._tenants = tenants
        self._part_size = PartSize(router.limits.part_bytes)

    def prepare(self, messages: Sequence[Message]) -> EventBatch:
        """Decode and validate ``messages``. Needs no database, so it runs while the previous batch is decided."""
        now, batch = self._now(), EventBatch()
        for message in messages:
            decoded = self._decode(message)  # first, because all later stages rely on the types of the schema
            event = decoded if isinstance(decoded, Dead) else self._validate(decoded, message, now)
            if not isinstance(event, Dead) and self._tenants is not None:
                event = of_tenant(event, self._tenants)
            if isinstance(event, Dead):
                origin = None if isinstance(decoded, Dead) else origin_of(decoded.record)
                batch.dead.append(DeadRecord(message, event, origin))
            else:
                batch.events.append(event)
        return batch

    async def apply(self, batch: EventBatch) -> AsyncGenerator[Outputs, None]:
        """Decide, then publish, part by part: no change of a lead is published before it is committed.

        The records about events that are not accepted come last: while Postgres is unavailable, this is repeated, and
        they must not be.
        """
        oversize: list[Oversize] = []
        duplicates: list[Event] = []
        reused: list[Reused] = []
        suppressed: list[Event] = []
        dead = list(batch.dead)
        async for decided in decide_in_parts(batch.events, self._decide, self._part_size):
            oversize += decided.oversize
            duplicates += decided.decision.duplicates
            reused += decided.decision.reused
            suppressed += (*decided.decision.suppressed, *decided.late)
            dead += decided.decision.dead
            yield partial(self._router.route, decided.decision)
        yield partial(self._router.unaccepted, duplicates, reused, oversize, suppressed, dead)

    async def _decide(self, batch: Sequence[Event]) -> Decision:
        await self._store.make_months(self._now())
        async with self._store.transaction() as stored:
            now = self._now()
            # Dedupe before identify: a duplicate must not bind identities or merge leads.
            events = dedupe(batch, await stored.receipts(batch, now))
            if commands.is_split(batch):
                decision = await commands.decide_split(stored, events, now, self._router.limits)
                await stored.write(decision, {})
                return decision
            # Identify before merge: it determines which leads must be locked and which of them are merged.
            owners = await stored.owners(events.new)
            if dead := commands.unknown_leads(events.new, owners):
                return Decision(now, dead=[dead])
            # Suppress before identify: an event about an erased person must not bind its identities again.
            suppressions = await stored.suppressions(unowned(events.new, owners))
            admitted = admit(events.new, owners, suppressions, self._policies)
            events = events._replace(new=admitted.events)
            owners |= erased_owners(events.new, owners, suppressions, admitted)
            holders = await stored.holders(holders_needed(events.new, owners))
            who = identify(events.new, owners, now, uuid7, holders=holders, policies=self._policies)
            if erasure := followed_erasure(events.new, who):
                raise Follows(erasure)
            # Bind before lock: another worker that binds the same identity waits here for this commit, then retries.
            await stored.bind(who.bindings)
            leads = await stored.lock(who.existing)
            if dead := commands.not_to_be_merged(events.new, who, leads):
                return Decision(now, dead=[dead])
            if changed_holders(who, holders, {lead_id: lead.version for lead_id, lead in leads.items()}):
                raise Contended("identified_lead")
            if what := await self._moved_meanwhile(stored, owners, leads, who.bindings, suppressions):
                raise Contended(what)
            lifted = lifted_leads(admitted.lifted, who.bindings)
            if too_late := late(events.new, who, leads, lifted):
                raise Late(too_late)
            erased = {lead_id: (each.erased_at, each.event_id) for lead_id, each in lifted.items()}
            touches = await stored.touches(*touches_needed(events.new, who, leads, erased))
            past = await stored.past(reported_leads(events.new, who), reported_fields(events.new))
            history, current = await stored.history(events.redelivered)
            signals = await stored.signal_types()
            known = DecisionInput(now, events, owners, who, leads, touches, past, history, current, signals, erased)
            decision = decide(known, self._router.limits)  # merge; only what can be published is written
            if decision.oversize:
                raise TooLarge(decision.oversize)  # rolls the transaction back
            if decision.cut:
                raise Cut(decision.cut)
            erasures = erasures_of(decision, leads, self._policies)
            decision = replace(decision, suppressed=admitted.refused, erasures=erasures)
            written = await stored.write(decision, admitted.lifted)
            refused = [*written, *await stored.refused(events.redelivered)]
        return replace(decision, refused=refused)

    async def _moved_meanwhile(
        self,
        stored: Transaction,
        owners: Mapping[Identity, str],
        leads: Mapping[str, LeadRow],
        bindings: Mapping[Identity, str],
        suppressions: Mapping[Identity, Suppression],
    ) -> str:
        """Return what another worker has done to an identity since it was looked up, or "".

        It may have split or erased one of the leads, which are locked now, or have erased an unknown person.
        """
        erased = {lead_id for lead_id, lead in leads.items() if lead.erased_at is not None}
        split = {lead_id for lead_id, lead in leads.items() if lead.split}
        of_erased = [i for i, lead_id in owners.items() if lead_id in erased and i not in suppressions]
        of_split = [i for i, lead_id in owners.items() if lead_id in split and i[1] != LEAD and i not in suppressions]
        if of_erased or of_split:
            current = await stored.owned([*of_erased, *of_split])
            if any(i not in current for i in of_erased):
                return "erased_lead"
            if any(current.get(i) != owners[i] for i in of_split):
                return "split_lead"
        return "erased_lead" if await stored.suppressions([i for i in bindings if i not in suppressions]) else ""
