"""Handles one enrichment request: emits one outcome, and one lead event if a provider found the lead.

Crash: a request that is processed again gives the same event with the same event_id, which intake recognises as a
duplicate. The event_id is a hash of tenant, lead, provider and request; the values come from the cached result.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from infra import metrics
from infra.clock import Clock, now_us
from infra.kafka.dead_letters import dead_letter
from infra.kafka.outcome_records import OutcomeRecords
from infra.kafka.producer import Headers, Output
from infra.kafka.sizes import fits
from infra.outcomes import Dead, Problem, Reason, What
from schemas.codec import Codec, DecodeError
from schemas.lead import parse_lead
from streams.enrichment.providers import FIELDS, Found, LookupFailed
from streams.enrichment.waterfall import Enrichment, Waterfall
from streams.faust.ordered import Record

STAGE = "enrichment"
TOPIC = "leads.enrichment-requested"
SOURCE = "leadstream:enrichment:"
_NAMESPACE = uuid.UUID("0f5c1a52-9a0e-5b63-9f0a-6f1f6c1f3c77")  # of event ids, for UUID version 5


class EnrichmentHandler:
    """The handler of the enrichment stage, called by :class:`streams.faust.ordered.OrderedPipe`."""

    def __init__(self, waterfall: Waterfall, codec: Codec, *, clock: Clock = now_us) -> None:
        self._waterfall = waterfall
        self._codec = codec
        self._event = codec.encoder("enrichment_completed")
        self._outcomes = OutcomeRecords(STAGE, codec.encoder("outcome"), clock)

    async def __call__(self, record: Record) -> Sequence[Output]:
        """Return the outcome of one request and the lead event if the lead was found, or a dead letter.

        Raises:
            DependencyUnavailable: Postgres is unavailable; call again with the same record.

        """
        try:
            decoded = self._codec.decode(record.value() or b"")
        except DecodeError as error:
            return [self._dead(record, error.dead)]
        if decoded.type != "enrichment_request":
            problem = Problem("", f"{TOPIC} is for records of type enrichment_request, not {decoded.type}")
            return [self._dead(record, Dead(Reason.INVALID_FIELD, (problem,)))]
        try:
            request = decoded.record | {"lead": parse_lead(decoded.record["lead"])}
        except ValueError as error:
            return [self._dead(record, Dead(Reason.NOT_JSON, (Problem("/lead", str(error)),)))]
        identifiers = identifiers_of(request["lead"])
        enrichment = await self._waterfall.enrich(request["tenant"], request["lead"]) if identifiers else None
        if enrichment is None or not isinstance(enrichment.result, Found):
            return [self._outcome(record, request, *_describe(enrichment))]
        value = self._event(completed_event(request, identifiers, enrichment, enrichment.result))
        key = f"{request['tenant']}:{next(iter(identifiers.values()))}".encode()
        event = Output("leads.received", key, value, _trace(record.headers()))
        if not fits(event):
            return [self._outcome(record, request, What.SKIPPED, Reason.TOO_LARGE, enrichment.provider)]
        return [event, self._outcome(record, request, *_describe(enrichment))]

    def _outcome(
        self, record: Record, request: Mapping[str, Any], what: What, reason: Reason | None, detail: str
    ) -> Output:
        return self._outcomes.build(
            what,
            reason,
            tenant=request["tenant"],
            event_id=request["event_id"],
            lead_id=request["lead"]["lead_id"],
            version=request["lead"]["version"],
            source=(record.topic(), record.partition(), record.offset()),
            detail=detail,
        )

    def _dead(self, record: Record, dead: Dead) -> Output:
        metrics.OUTCOMES.labels(STAGE, What.DEAD.value, dead.reason.value).inc()
        return dead_letter(record, STAGE, dead, DecodeError.__name__)


def identifiers_of(lead: Mapping[str, Any]) -> dict[str, Any]:
    """Return the identifiers for the enrichment event, or none if the lead cannot be identified.

    Only the lead's strongest kind of identifier is used: the others may belong to another lead by now, and the event
    would merge the two leads.
    """
    for names in (("email", "external_id"), ("phone",)):
        identifiers = {name: lead[name] for name in names if lead[name]}
        if identifiers:
            return identifiers
    return {"crm_ids": lead["crm_ids"]} if lead["crm_ids"] else {}


def completed_event(
    request: Mapping[str, Any], identifiers: Mapping[str, Any], enrichment: Enrichment, found: Found
) -> dict[str, Any]:
    """Return the ``enrichment_completed`` event with the data that ``enrichment.provider`` found."""
    tenant, lead_id = request["tenant"], request["lead"]["lead_id"]
    event_id = uuid.uuid5(_NAMESPACE, "\0".join((tenant, lead_id, enrichment.provider, request["event_id"])))
    return {
        "envelope": {
            "event_id": str(event_id),
            "tenant": tenant,
            "occurred_at": enrichment.fetched_at,
            "source": SOURCE + enrichment.provider,
            "context": {},
        },
        "identifiers": {"external_id": "", "email": "", "phone": "", "anonymous_id": "", "crm_ids": {}, **identifiers},
        "provider": enrichment.provider,
        "likelihood": found.likelihood,
        "request_event_id": request["event_id"],
        **{name: value for name, value in found.fields.items() if name in FIELDS},
    }


def _describe(enrichment: Enrichment | None) -> tuple[What, Reason | None, str]:
    if enrichment is None:
        return What.SKIPPED, Reason.NO_IDENTIFIER, "the lead has no value that a provider can look up"
    result = enrichment.result
    if isinstance(result, Found):
        return What.ENRICHED, None, enrichment.provider
    if isinstance(result, LookupFailed):
        detail = f"{enrichment.provider}: {result.detail}" if result.detail else enrichment.provider
        return What.PARKED, result.reason, detail
    return What.SKIPPED, Reason.NOT_FOUND, enrichment.provider


def _trace(headers: Headers) -> Headers | None:
    return [(name, value) for name, value in headers if name == "traceparent"] or None
