"""Turns the result of a lookup into records: the lead event, and what the outcome says."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from infra.kafka.producer import Output
from infra.outcomes import Reason, What
from infra.postgres.leased_rows import Subject
from schemas.codec import Codec
from streams.enrichment.providers import FIELDS, Found, LookupFailed
from streams.enrichment.waterfall import Enrichment

SOURCE = "leadstream:enrichment:"
_NAMESPACE = uuid.UUID("0f5c1a52-9a0e-5b63-9f0a-6f1f6c1f3c77")  # of event ids, for UUID version 5

Description = tuple[What, Reason | None, str]  # what, reason and detail of an outcome
UNIDENTIFIED: Description = (
    What.SKIPPED,
    Reason.NO_IDENTIFIER,
    "the lead has no value that a provider can look up",
)
ERASED: Description = (What.SKIPPED, Reason.ERASED, "the lead was erased after the request")
PURPOSE = "enrichment"
NOT_PERMITTED: Description = (What.SKIPPED, Reason.NO_CONSENT, f"consent {PURPOSE} is withdrawn")


class EventRecords:
    """Builds the ``enrichment_completed`` events.

    Guarantees: the same request and cached result give the same event with the same event_id, so that intake recognises
    a repeated one. The event_id is a hash of tenant, lead, provider and request.
    """

    def __init__(self, codec: Codec) -> None:
        self._encode = codec.encoder("enrichment_completed")

    def build(
        self, about: Subject, lead: Mapping[str, Any], enrichment: Enrichment, traceparent: bytes, asked_at: int
    ) -> Output:
        """Return the event with the data that ``enrichment.provider`` found about ``lead``, as it was ``asked_at``."""
        assert isinstance(enrichment.result, Found)  # noqa: S101 - for the type checker
        identifiers = identifiers_of(lead)
        event = completed_event(about, identifiers, enrichment, enrichment.result, asked_at)
        value = self._encode(event)
        key = f"{about.tenant}:{next(iter(identifiers.values()))}".encode()
        headers = [("traceparent", traceparent)] if traceparent else None
        return Output("leads.received", key, value, headers)


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
    about: Subject, identifiers: Mapping[str, Any], enrichment: Enrichment, found: Found, asked_at: int
) -> dict[str, Any]:
    """Return the ``enrichment_completed`` event with the data that ``enrichment.provider`` found."""
    words = (about.tenant, about.lead_id, enrichment.provider, about.event_id)
    event_id = uuid.uuid5(_NAMESPACE, "\0".join(words))
    return {
        "envelope": {
            "event_id": str(event_id),
            "tenant": about.tenant,
            "occurred_at": enrichment.fetched_at,
            "source": SOURCE + enrichment.provider,
            "context": {},
        },
        "identifiers": {"external_id": "", "email": "", "phone": "", "anonymous_id": "", "crm_ids": {}, **identifiers},
        "provider": enrichment.provider,
        "likelihood": found.likelihood,
        "request_event_id": about.event_id,
        "asked_at": asked_at,
        **{name: value for name, value in found.fields.items() if name in FIELDS},
    }


def obstacle_of(lead: Mapping[str, Any]) -> Description | None:
    """Return why a lead is not looked up: it has no identifier, or the consent for it is withdrawn. None: it is."""
    if not identifiers_of(lead):
        return UNIDENTIFIED
    return NOT_PERMITTED if lead["consent"].get(PURPOSE) == "withdrawn" else None


def open_failure(enrichment: Enrichment | None) -> LookupFailed | None:
    """Return the failure after which the request is to be repeated, or None if the result is final."""
    result = enrichment.result if enrichment is not None else None
    return result if isinstance(result, LookupFailed) and not result.refused else None


def describe(enrichment: Enrichment | None) -> Description:
    """Return what the outcome says about ``enrichment``."""
    if enrichment is None:
        return UNIDENTIFIED
    result = enrichment.result
    if isinstance(result, Found):
        return What.ENRICHED, None, enrichment.provider
    if isinstance(result, LookupFailed):
        detail = f"{enrichment.provider}: {result.detail}" if result.detail else enrichment.provider
        return What.SKIPPED if result.refused else What.PARKED, result.reason, detail
    return What.SKIPPED, Reason.NOT_FOUND, enrichment.provider
