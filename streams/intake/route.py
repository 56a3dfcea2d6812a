"""Stage 6 of 6: build the records to publish about a decision. A redelivered event gives the same records again.

The size of each record is checked before the decision is committed (:attr:`Router.limits`), so Postgres never has a
change whose records cannot be published.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from confluent_kafka import Message

from infra import metrics
from infra.clock import Clock, now_us
from infra.kafka.dead_letters import Origin, dead_letter
from infra.kafka.outcome_records import TOPIC as OUTCOMES
from infra.kafka.outcome_records import OutcomeRecords
from infra.kafka.producer import Output
from infra.kafka.received import tenant_of
from infra.kafka.senders import DeadBySender, sender_name, sender_of
from infra.kafka.sizes import topic_limits, utf8_bytes
from infra.outcomes import Dead, Problem, Reason, What
from schemas.codec import Codec
from streams.intake.decision import Change, Decision, Limits, Oversize
from streams.intake.dedupe import Reused
from streams.intake.event import DeadRecord, Event
from streams.intake.identity import Refused

STAGE = "intake"
CRM_TOPICS = "leads.crm-"  # prefix of the topics of CRM sync
_CHANGED, _ENRICHMENT, _SIGNALS = "leads.changed", "leads.enrichment-requested", "leads.campaign-signals"
_ENRICHABLE = frozenset({"email", "domain"})
# Upper bound of a record without lead, properties, changes and merged: ids, names and times (bounded by schemas.rules),
# key, traceparent and the overhead of a batch. The real maximum is about 2,500 bytes.
_FIXED = 4096
_MAX_TENANT, _MAX_EVENT_ID = 63, 200  # characters
_MERGED = 40  # bytes of one lead id in ``merged``
_REFUSED = {"shared": Reason.SHARED_IDENTITY, "cap": Reason.IDENTITY_CAP, "apart": Reason.KEPT_APART}


class Router:
    """Builds the records about decisions.

    Args:
        codec: encodes the records.
        crm_topics: receive the current version of each changed lead.
        part_bytes: maximum size of the records about the changes of one transaction; a single change may exceed it.
        topics: topic -> maximum record size in bytes; by default :func:`infra.kafka.sizes.topic_limits`.
        now: returns the current time in microseconds since 1970.

    Raises:
        ValueError: ``max.message.bytes`` of a topic is too small for any record.

    """

    def __init__(
        self,
        codec: Codec,
        crm_topics: Sequence[str],
        *,
        part_bytes: int = 16 << 20,
        topics: Mapping[str, int] | None = None,
        now: Clock = now_us,
    ) -> None:
        topics = topic_limits() if topics is None else topics
        if small := [name for name in (*crm_topics, OUTCOMES) if topics[name] < _FIXED]:
            raise ValueError(f"max.message.bytes of {', '.join(small)} must be at least {_FIXED}")
        self._record_bytes = min(topics[name] for name in (_CHANGED, _ENRICHMENT, _SIGNALS))
        # A quarter for the lead: a record also contains the event and the changes, each possibly as large as the lead.
        self.limits = Limits(self._record_bytes // 4, self._fits, part_bytes)
        self._crm_topics = crm_topics
        self._now = now
        self._senders = DeadBySender(STAGE)
        self._outcomes = OutcomeRecords(STAGE, codec.encoder("outcome"), now)
        self._lead_change = codec.encoder("lead_change")
        self._crm_wanted = codec.encoder("crm_wanted")
        self._enrichment_request = codec.encoder("enrichment_request")
        self._campaign_signal = codec.encoder("campaign_signal")

    def _fits(self, change: Change) -> bool:
        return self.largest_record(change) <= self._record_bytes

    def largest_record(self, change: Change) -> int:
        """Return an upper bound of the size in bytes of each record about ``change``, also when it is redelivered.

        The lead counts with its maximum size, because a redelivered event is published with the lead's state at that
        time.
        """
        event = change.event
        content = len(event.properties) + utf8_bytes(event.context) + utf8_bytes(change.changes)
        content += _MERGED * len(change.merged)
        return _FIXED + self.limits.lead_bytes + content

    def unaccepted(
        self,
        duplicates: Sequence[Event],
        reused: Sequence[Reused],
        oversize: Sequence[Oversize],
        suppressed: Sequence[Event],
        dead: Sequence[DeadRecord],
    ) -> list[Output]:
        """Return the records about what a batch has beside accepted events, and count it in the metrics."""
        letters = (*map(_reused, reused), *map(self._too_large, oversize), *map(_suppressed, suppressed), *dead)
        return [*map(self._duplicate, duplicates), *(self._dead(*letter) for letter in letters)]

    def route(self, decision: Decision) -> list[Output]:
        """Return the records about the accepted events of a decision, in order, and count them in the metrics.

        Each CRM topic gets one record per changed lead, with its newest version in the decision.
        """
        outputs: list[Output] = []
        newest: dict[str, tuple[str, int]] = {}
        for change in (*decision.redelivered, *decision.accepted):
            outputs += self._records(change, signalled=change.event.type.name in decision.signal_types)
            tenant, lead_id = change.event.tenant, change.lead_id
            newest[lead_id] = (tenant, max(change.lead_version, newest.get(lead_id, ("", 0))[1]))
            newest |= {loser: (tenant, version) for loser, version in change.merged.items()}
        count = len(decision.redelivered) + len(decision.accepted) - bool(decision.undone)  # one event, two changes
        metrics.OUTCOMES.labels(STAGE, What.ACCEPTED.value, "").inc(count)
        outputs += map(self._refused, decision.refused)
        decided_at = self._now()
        for lead_id, (tenant, version) in newest.items():
            record = {"tenant": tenant, "lead_id": lead_id, "version": version, "decided_at": decided_at}
            outputs += [Output(topic, lead_id.encode(), self._crm_wanted(record)) for topic in self._crm_topics]
        return outputs

    def _dead(self, message: Message, dead: Dead, origin: Origin | None) -> Output:
        """Return the dead letter of ``message`` and count it. In the topic of a tenant, its origin is the tenant."""
        metrics.OUTCOMES.labels(STAGE, What.DEAD.value, dead.reason.value).inc()
        origin = origin or Origin(sender=sender_of(message))
        if tenant := tenant_of(message.topic() or ""):  # who sent it is certain, whatever the record claims
            origin = Origin(tenant, origin.event_id, sender_name(f"{tenant}/{origin.sender.rpartition('/')[2]}"))
        self._senders.count(origin.sender)
        return dead_letter(message, STAGE, dead, origin=origin)

    def _too_large(self, oversize: Oversize) -> DeadRecord:
        if oversize.what == "lead":
            problem = f"the lead would be larger than {self.limits.lead_bytes} bytes: send fewer or shorter fields"
        else:
            problem = f"a record about the lead would be larger than {self._record_bytes} bytes: send a smaller event"
        event = oversize.event
        return DeadRecord(event.message, Dead(Reason.TOO_LARGE, (Problem("", problem),)), origin_of(event.record))

    def _records(self, change: Change, *, signalled: bool) -> list[Output]:
        event = change.event
        key = change.lead_id.encode()
        headers = [("traceparent", event.traceparent)] if event.traceparent else None
        properties = event.properties.decode()
        outputs = [Output(_CHANGED, key, self._lead_change(_lead_change(change, properties)), headers)]
        if not event.own and not _ENRICHABLE.isdisjoint(change.changed):
            request = {
                "tenant": event.tenant,
                "event_id": event.event_id,
                "decided_at": change.decided_at,
                "lead": change.lead,
            }
            outputs.append(Output(_ENRICHMENT, key, self._enrichment_request(request), headers))
        if signalled:
            signal = {
                "tenant": event.tenant,
                "event_id": event.event_id,
                "event_type": event.type.name,
                "occurred_at": event.occurred_at,
                "decided_at": change.decided_at,
                "properties": properties,
                "lead": change.lead,
            }
            outputs.append(Output(_SIGNALS, key, self._campaign_signal(signal), headers))
        return outputs

    def _refused(self, refused: Refused) -> Output:
        kind = refused.identity[1]
        return self._outcomes.build(
            What.REFUSED,
            _REFUSED[refused.why],
            tenant=refused.event.tenant,
            event_id=refused.event.event_id,
            lead_id=refused.lead_id,
            source=refused.event.coordinates,
            detail=f"{kind} of the lead {refused.holder}" if refused.holder else f"{kind}: the lead has too many",
        )

    def _duplicate(self, event: Event) -> Output:
        return self._outcomes.build(
            What.DUPLICATE,
            Reason.DUPLICATE_EVENT,
            tenant=event.tenant,
            event_id=event.event_id,
            source=event.coordinates,
        )


def _reused(reused: Reused) -> DeadRecord:
    topic, partition, offset = reused.first
    message = (
        f"another event of this tenant has this event_id: the record {topic}/{partition}/{offset}, with another type, "
        "source or content. Give each event its own event_id and send this one again"
    )
    dead = Dead(Reason.EVENT_ID_REUSED, (Problem("/envelope/event_id", message),))
    return DeadRecord(reused.event.message, dead, origin_of(reused.event.record))


def _suppressed(event: Event) -> DeadRecord:
    message = (
        "the person was erased: what was said before is refused, and so is what comes after it without the person's "
        "own new consent. If the person wants to be known again, send consent_changed with the status granted first"
    )
    return DeadRecord(event.message, Dead(Reason.SUPPRESSED, (Problem("", message),)), origin_of(event.record))


def origin_of(record: Mapping[str, Any]) -> Origin | None:
    """Return the origin of an event, which may be invalid; None if the record is not a lead event."""
    if (envelope := record.get("envelope")) is None:
        return None
    tenant, source = envelope["tenant"][:_MAX_TENANT], envelope["source"]
    return Origin(tenant, envelope["event_id"][:_MAX_EVENT_ID], sender_name(f"{tenant}/{source}"))


def _lead_change(change: Change, properties: str) -> dict[str, Any]:
    event = change.event
    return {
        "tenant": event.tenant,
        "event_id": event.event_id,
        "event_type": event.type.name,
        "source": event.source,
        "own": event.own,
        "lead_id": change.lead_id,
        "version": change.version,
        "occurred_at": event.occurred_at,
        "received_at": event.received_at,
        "decided_at": change.decided_at,
        "topic": event.topic,
        "partition": event.partition,
        "offset": event.offset,
        "context": event.record["envelope"]["context"],
        "properties": properties,
        "changes": change.changes,
        "merged": list(change.merged),
        "lead": change.lead,
    }
