"""Stage 6 of 6: who has to know. A pure function of what was decided, so that a redelivery tells the same again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from infra.kafka.producer import Output
from infra.outcomes import Reason, What
from schemas.codec import Codec
from streams.intake.event import Event
from streams.intake.store import Change

CRM_TOPICS = "leads.crm-"
_ENRICHABLE = frozenset({"email", "domain"})


class Router:
    """Turns decisions into records; ``signals`` are the event types that campaigns listen to."""

    def __init__(self, codec: Codec, crm_topics: Sequence[str], signals: frozenset[str]) -> None:
        self._crm_topics = crm_topics
        self._signals = signals
        self._lead_change = codec.encoder("lead_change")
        self._crm_wanted = codec.encoder("crm_wanted")
        self._enrichment_request = codec.encoder("enrichment_request")
        self._campaign_signal = codec.encoder("campaign_signal")
        self._outcome = codec.encoder("outcome")

    def route(self, changes: Iterable[Change], now: int) -> list[Output]:
        """Return the records that ``changes`` come to, in their order; a lead goes to each CRM's topic once."""
        outputs: list[Output] = []
        newest: dict[str, tuple[str, int]] = {}
        for change in changes:
            event = change.event
            key = change.lead_id.encode()
            headers = [("traceparent", event.traceparent)] if event.traceparent else None
            properties = event.properties.decode()
            outputs.append(Output("leads.changed", key, self._lead_change(_lead_change(change, properties)), headers))
            if not event.own and not _ENRICHABLE.isdisjoint(change.changed):
                request = {
                    "tenant": event.tenant,
                    "event_id": event.event_id,
                    "decided_at": change.decided_at,
                    "lead": change.lead,
                }
                value = self._enrichment_request(request)
                outputs.append(Output("leads.enrichment-requested", key, value, headers))
            if event.type.name in self._signals:
                signal = {
                    "tenant": event.tenant,
                    "event_id": event.event_id,
                    "event_type": event.type.name,
                    "occurred_at": event.occurred_at,
                    "decided_at": change.decided_at,
                    "properties": properties,
                    "lead": change.lead,
                }
                outputs.append(Output("leads.campaign-signals", key, self._campaign_signal(signal), headers))
            newest[change.lead_id] = (event.tenant, max(change.lead_version, newest.get(change.lead_id, ("", 0))[1]))
            if change.merged:
                newest |= {loser: (event.tenant, version) for loser, version in change.merged.items()}
        for lead_id, (tenant, version) in newest.items():
            record = {"tenant": tenant, "lead_id": lead_id, "version": version, "decided_at": now}
            outputs += [Output(topic, lead_id.encode(), self._crm_wanted(record)) for topic in self._crm_topics]
        return outputs

    def duplicates(self, events: Iterable[Event], now: int) -> list[Output]:
        """Return the outcomes of events that were accepted before from another record."""
        return [self._duplicate(event, now) for event in events]

    def _duplicate(self, event: Event, now: int) -> Output:
        record = {
            "at": now,
            "stage": "intake",
            "what": What.DUPLICATE.value,
            "reason": Reason.DUPLICATE_EVENT.value,
            "tenant": event.tenant,
            "event_id": event.event_id,
            "topic": event.topic,
            "partition": event.partition,
            "offset": event.offset,
        }
        return Output("leads.outcomes", event.event_id.encode(), self._outcome(record))


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
