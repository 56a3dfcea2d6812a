"""Stage 6 of 6: the records to publish for a decision. A redelivered event has the same ones.

The size of each record is checked before the decision is committed (:attr:`Router.limits`): Postgres never has a
decision whose records cannot be delivered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from confluent_kafka import Message

from infra import metrics
from infra.clock import Clock, now_us
from infra.kafka.dead_letters import dead_letter
from infra.kafka.outcome_records import TOPIC as OUTCOMES
from infra.kafka.outcome_records import OutcomeRecords
from infra.kafka.producer import Output
from infra.kafka.sizes import topic_limits, utf8_bytes
from infra.outcomes import Dead, Problem, Reason, What
from schemas.codec import Codec
from streams.intake.decide import Change, Decision, Limits
from streams.intake.event import Event

STAGE = "intake"
CRM_TOPICS = "leads.crm-"
_CHANGED, _ENRICHMENT, _SIGNALS = "leads.changed", "leads.enrichment-requested", "leads.campaign-signals"
_ENRICHABLE = frozenset({"email", "domain"})
# Everything of a record but lead, properties, changes and merged: ids, names and times, all bounded by the rules of an
# event, the lead's own ids and times, the record's key, its traceparent and the overhead of a batch. About 2,500 bytes.
_FIXED = 4096
_MERGED = 40  # bytes of one id in ``merged``


class Router:
    """Turns decisions into records.

    ``crm_topics``: each receives the newest version of every changed lead. ``topics``: the size limit of each topic
    (default: :func:`infra.kafka.sizes.topic_limits`).
    """

    def __init__(
        self,
        codec: Codec,
        crm_topics: Sequence[str],
        *,
        topics: Mapping[str, int] | None = None,
        now: Clock = now_us,
    ) -> None:
        topics = topic_limits() if topics is None else topics
        if small := [name for name in (*crm_topics, OUTCOMES) if topics[name] < _FIXED]:
            raise ValueError(f"max.message.bytes of {', '.join(small)} has to be at least {_FIXED}")
        largest = min(topics[name] for name in (_CHANGED, _ENRICHMENT, _SIGNALS))
        # A lead may take a quarter: besides it a record holds an event and the changes, each about as large at most.
        self.limits = Limits(largest // 4, self._fits)
        self._room = largest - _FIXED - self.limits.lead_bytes
        self._crm_topics = crm_topics
        self._now = now
        self._outcomes = OutcomeRecords(STAGE, codec.encoder("outcome"), now)
        self._lead_change = codec.encoder("lead_change")
        self._crm_wanted = codec.encoder("crm_wanted")
        self._enrichment_request = codec.encoder("enrichment_request")
        self._campaign_signal = codec.encoder("campaign_signal")

    def _fits(self, change: Change) -> bool:
        return self._content(change) <= self._room

    def largest_record(self, change: Change) -> int:
        """Return an upper bound, in bytes, of every record published for ``change``, also at redelivery.

        The maximum size of a lead is used: a redelivery publishes the current lead, which may have grown.
        """
        return _FIXED + self.limits.lead_bytes + self._content(change)

    @staticmethod
    def _content(change: Change) -> int:
        return len(change.event.properties) + utf8_bytes(change.changes) + _MERGED * len(change.merged)

    def route(self, decisions: Iterable[Decision]) -> list[Output]:
        """Return the records of a batch's ``decisions``, in their order, and count its events by outcome.

        A lead goes to each CRM's topic once, at its newest version.
        """
        outputs: list[Output] = []
        newest: dict[str, tuple[str, int]] = {}
        for decision in decisions:
            for change in (*decision.redelivered, *decision.accepted):
                outputs += self._change(change, signalled=change.event.type.name in decision.signal_types)
                tenant, lead_id = change.event.tenant, change.lead_id
                newest[lead_id] = (tenant, max(change.lead_version, newest.get(lead_id, ("", 0))[1]))
                newest |= {loser: (tenant, version) for loser, version in change.merged.items()}
            count = len(decision.redelivered) + len(decision.accepted)
            metrics.OUTCOMES.labels(STAGE, What.ACCEPTED.value, "").inc(count)
            outputs += [self._duplicate(event) for event in decision.duplicates]
        decided_at = self._now()
        for lead_id, (tenant, version) in newest.items():
            record = {"tenant": tenant, "lead_id": lead_id, "version": version, "decided_at": decided_at}
            outputs += [Output(topic, lead_id.encode(), self._crm_wanted(record)) for topic in self._crm_topics]
        return outputs

    def dead(self, message: Message, dead: Dead) -> Output:
        """Return the dead letter of ``message`` and count it."""
        metrics.OUTCOMES.labels(STAGE, What.DEAD.value, dead.reason.value).inc()
        return dead_letter(message, STAGE, dead)

    def too_large(self, event: Event) -> Output:
        """Return the dead letter of an event whose lead, or a record about it, would be too large, and count it."""
        problem = f"with it the lead would be larger than {self.limits.lead_bytes} bytes; send fewer or shorter fields"
        return self.dead(event.message, Dead(Reason.TOO_LARGE, (Problem("", problem),)))

    def _change(self, change: Change, *, signalled: bool) -> list[Output]:
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

    def _duplicate(self, event: Event) -> Output:
        return self._outcomes.build(
            What.DUPLICATE,
            Reason.DUPLICATE_EVENT,
            tenant=event.tenant,
            event_id=event.event_id,
            source=event.coordinates,
        )


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
        "properties": properties,
        "changes": change.changes,
        "merged": list(change.merged),
        "lead": change.lead,
    }
