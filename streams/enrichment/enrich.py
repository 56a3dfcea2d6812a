"""Handles one enrichment request: emits one outcome, and one lead event if a provider found the lead.

A request that no provider can answer now is stored in ``enrichment_work`` before its record is acked, and is retried by
:mod:`streams.enrichment.work` until it is answered, refused or expired: only then is its outcome ``parked``.

Crash: a request that is processed again gives the same event with the same event_id, which intake recognises as a
duplicate (:class:`streams.enrichment.answers.EventRecords`); the values come from the cached result.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infra import metrics
from infra.clock import Clock, now_us, seconds_us
from infra.kafka.dead_letters import dead_letter
from infra.kafka.outcome_records import OutcomeRecords
from infra.kafka.producer import Headers, Output
from infra.kafka.sizes import fits
from infra.outcomes import Dead, Problem, Reason, What
from infra.postgres.leased_rows import Subject
from infra.retry import Backoff
from schemas.codec import Codec, DecodeError
from schemas.lead import parse_lead
from streams.enrichment import STAGE
from streams.enrichment.answers import (
    ERASED,
    Description,
    EventRecords,
    describe,
    obstacle_of,
    open_failure,
)
from streams.enrichment.erased import Erasures
from streams.enrichment.parking import Parking
from streams.enrichment.providers import Found, LookupFailed
from streams.enrichment.waterfall import Enrichment, Lookups
from streams.enrichment.work_table import OpenRequest
from streams.faust.ordered import Record

TOPIC = "leads.enrichment-requested"
_RECORD = "enrichment_request"
# The fields of the lead that are used here, or that a provider may look up.
_TEXTS = (
    "tenant",
    "email",
    "external_id",
    "phone",
    "first_name",
    "last_name",
    "company",
    "domain",
    "country",
    "region",
)
_MAX_VERSION = 2**63 - 1
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_TRACEPARENT = re.compile(rb"[0-9a-f-]{1,55}")


@dataclass(frozen=True, slots=True)
class _Request:
    about: Subject
    lead: Mapping[str, Any]
    traceparent: bytes
    asked_at: int  # when intake decided the version of the lead in it


class EnrichmentHandler:
    """The handler of the enrichment stage, called by :class:`streams.faust.ordered.OrderedPipe`.

    ``backoff``: of the first repetition of a failed request. Nothing is looked up about a lead that was erased since
    the request, or whose person has withdrawn the consent ``enrichment``; an answer that comes after an erasure is not
    published.
    """

    def __init__(
        self,
        waterfall: Lookups,
        codec: Codec,
        parking: Parking,
        backoff: Backoff,
        *,
        erasures: Erasures,
        clock: Clock = now_us,
    ) -> None:
        self._erasures = erasures
        self._waterfall = waterfall
        self._codec = codec
        self._parking = parking
        self._backoff = backoff
        self._clock = clock
        self._events = EventRecords(codec)
        self._outcomes = OutcomeRecords(STAGE, codec.encoder("outcome"), clock)

    async def __call__(self, record: Record) -> Sequence[Output]:
        """Return the outcome of one request and the lead event if the lead was found, or a dead letter.

        Raises:
            DependencyUnavailable: Postgres is unavailable; call again with the same record.

        """
        request = self._read(record)
        if isinstance(request, Dead):
            metrics.OUTCOMES.labels(STAGE, What.DEAD.value, request.reason.value).inc()
            return [dead_letter(record, STAGE, request, DecodeError.__name__)]
        if obstacle := obstacle_of(request.lead) or await self._erased(request):
            return [self._outcome(request.about, *obstacle)]
        enrichment = await self._waterfall.enrich(request.about.tenant, request.lead)
        if erased := await self._erased(request):
            return [self._outcome(request.about, *erased)]
        if failure := open_failure(enrichment):
            return await self._park(request, failure, describe(enrichment)[2])
        return self._answered(request, enrichment)

    def _read(self, record: Record) -> _Request | Dead:
        try:
            decoded = self._codec.decode(record.value() or b"")
        except DecodeError as error:
            return error.dead
        if decoded.type != _RECORD:
            problem = Problem("", f"{TOPIC} is for records of type {_RECORD}, not {decoded.type}")
            return Dead(Reason.INVALID_FIELD, (problem,))
        try:
            lead = parse_lead(decoded.record["lead"])
        except ValueError as error:
            return Dead(Reason.NOT_JSON, (Problem("/lead", str(error)),))
        tenant, event_id = decoded.record["tenant"], decoded.record["event_id"]
        if problems := _problems(tenant, event_id, lead):
            return Dead(Reason.INVALID_FIELD, tuple(problems))
        source = (record.topic(), record.partition(), record.offset())
        about = Subject(tenant, event_id, lead["lead_id"], lead["version"], source)
        return _Request(about, lead, _traceparent(record.headers()), decoded.record["decided_at"])

    async def _erased(self, request: _Request) -> Description | None:
        return ERASED if await self._erasures.erased(request.about.lead_id, request.asked_at) else None

    def _answered(self, request: _Request, enrichment: Enrichment | None) -> list[Output]:
        if enrichment is None or not isinstance(enrichment.result, Found):
            return [self._outcome(request.about, *describe(enrichment))]
        event = self._events.build(request.about, request.lead, enrichment, request.traceparent, request.asked_at)
        if not fits(event):
            return [self._outcome(request.about, What.SKIPPED, Reason.TOO_LARGE, enrichment.provider)]
        return [event, self._outcome(request.about, *describe(enrichment))]

    async def _park(self, request: _Request, failure: LookupFailed, detail: str) -> list[Output]:
        about = request.about
        due_at = failure.until or self._clock() + seconds_us(self._backoff.seconds(1))
        earlier = await self._parking.add(
            OpenRequest(about, request.traceparent.decode(), failure.reason, due_at),
        )
        if earlier is not None and earlier.version >= about.version:
            return [self._superseded(about)]
        parked = self._outcome(about, What.PARKED, failure.reason, detail)
        return [parked] if earlier is None else [self._superseded(earlier), parked]

    def _superseded(self, about: Subject) -> Output:
        return self._outcome(about, What.SKIPPED, Reason.SUPERSEDED, "a newer request about the lead")

    def _outcome(self, about: Subject, what: What, reason: Reason | None, detail: str) -> Output:
        return self._outcomes.build(
            what,
            reason,
            tenant=about.tenant,
            event_id=about.event_id,
            lead_id=about.lead_id,
            version=about.version,
            source=about.source,
            detail=detail,
        )


def _problems(tenant: str, event_id: str, lead: Mapping[str, Any]) -> list[Problem]:
    """Return what is wrong with the values that are stored or looked up; the codec has not checked the lead."""
    problems = [
        Problem(f"/{name}", "must not contain a NUL character")
        for name, value in (("tenant", tenant), ("event_id", event_id))
        if "\0" in value
    ]
    problems += [Problem(f"/lead/{name}", "must be a text") for name in _TEXTS if not isinstance(lead[name], str)]
    if not isinstance(lead["lead_id"], str) or not _UUID.fullmatch(lead["lead_id"]):
        problems.append(Problem("/lead/lead_id", "must be a UUID in lower case"))
    if not isinstance(lead["consent"], dict):
        problems.append(Problem("/lead/consent", "must be a map"))
    if type(lead["version"]) is not int or not 0 <= lead["version"] <= _MAX_VERSION:
        problems.append(Problem("/lead/version", "must be an integer from 0"))
    crm_ids = lead["crm_ids"]
    if not isinstance(crm_ids, dict) or not all(isinstance(value, str) for value in crm_ids.values()):
        problems.append(Problem("/lead/crm_ids", "must be a map of texts"))
    return problems


def _traceparent(headers: Headers) -> bytes:
    found = [value for name, value in headers if name == "traceparent" and _TRACEPARENT.fullmatch(value or b"")]
    return found[-1] if found else b""
