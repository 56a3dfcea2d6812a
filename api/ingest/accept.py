"""Shared by all input formats: validate each event, deliver the valid ones, report the status of each.

Guarantees: an event is ``accepted`` only after the broker has confirmed it with ``acks=all``. Without a confirmation in
time its status is ``unknown``: sent again with the same event_id it counts once, because intake drops the duplicate.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from confluent_kafka import KafkaException

from api.errors import Refusal
from infra import metrics
from infra.clock import Clock, now_us, uuid7
from infra.kafka.producer import Deliverer, Delivery, Output
from infra.outcomes import Dead, Problem, Reason
from infra.tenants import Tenants
from schemas.addresses import normal_email
from schemas.codec import Codec, DecodeError
from schemas.json_form import from_json
from schemas.registry import Registry, registry
from schemas.rules import check_event
from schemas.senders import Sender, forbidden

TOPIC = "leads.received"
_SOURCE = "api"
_BOM = b"\xef\xbb\xbf"
_MAX_PENDING_BYTES = 64 << 20  # maximum bytes of events that wait for the broker, in this process
_MAX_MEMBERS = 1000  # an object with more of them is invalid, and not worth a copy
# JSON is at most 6 times as long as the same event in Avro (\u0001 for one byte), white space aside.
_MAX_JSON_SHARE = 8
_MAX_PROBLEMS = 1000  # in one response
_MAX_ECHO = 200  # characters of an event_id in a response: the maximum of a valid one
_NO_TENANT = (None, "")
_REFUSED = {"MSG_SIZE_TOO_LARGE", "INVALID_RECORD"}

Item = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ValidEvent:
    """A valid event, encoded as a record of ``leads.received``."""

    event_id: str
    key: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class InvalidEvent:
    """An event that is rejected; ``event_id`` is "" if it could not be read."""

    event_id: str
    dead: Dead

    @property
    def item(self) -> Item:
        """The event's item in the response."""
        problems = [{"path": p.path, "message": p.message} for p in self.dead.problems]
        return {
            "event_id": self.event_id[:_MAX_ECHO] or None,
            "status": "rejected",
            "reason": self.dead.reason.value,
            "problems": problems,
        }


Checked = ValidEvent | InvalidEvent


class Checker:
    """Validates events by the rules of intake and encodes them: intake does not dead-letter a valid event.

    ``tenants``: those that are served, with the region of their phone numbers; None: all, without a region.
    """

    def __init__(
        self,
        *,
        max_event_bytes: int,
        max_ahead_us: int,
        tenants: Tenants | None = None,
        schemas: Registry | None = None,
        now: Clock = now_us,
        new_id: Callable[[], str] = uuid7,
    ) -> None:
        self._schemas = schemas or registry()
        self._codec = Codec(self._schemas)
        self._encoders = {name: self._codec.encoder(name) for name in self._schemas.events}
        self._max_event_bytes = max_event_bytes
        self._max_ahead_us = max_ahead_us
        self._tenants = tenants
        self._now = now
        self._new_id = new_id

    def json(self, document: Any, sender: Sender) -> Checked:
        """Check one event in its JSON form; what its envelope lacks is added: the tenant is the sender's."""
        now = self._now()
        event_id = ""
        if isinstance(document, dict):
            document, event_id = self._completed(document, now, sender.tenant)
        kind, record = from_json(document, self._schemas) if isinstance(document, dict) else ("", _NO_OBJECT)
        if isinstance(record, Dead):
            return InvalidEvent(event_id, record)
        return self._validated(kind, record, now, sender)

    def line(self, line: bytes, sender: Sender) -> Checked:
        """Check the text of one event: a line of NDJSON, an element of an array, or a whole body."""
        line = line.removeprefix(_BOM)  # files that were joined have one in the middle
        if self.is_too_large(line):
            return InvalidEvent("", self._too_large(len(line)))
        try:
            document = orjson.loads(line)
        except ValueError as error:
            return InvalidEvent("", Dead(Reason.NOT_JSON, (Problem("", not_json(error)),)))
        return self.json(document, sender)

    def is_too_large(self, line: bytes) -> bool:
        """Return whether the text of one event is so large that the event is, without the work of parsing it."""
        return len(line) > self._max_event_bytes * _MAX_JSON_SHARE

    def avro(self, payload: bytes, sender: Sender) -> Checked:
        """Check one event in a wire format of ``leads.received``; its bytes are published unchanged."""
        if len(payload) > self._max_event_bytes:  # before the work of decoding it
            return InvalidEvent("", self._too_large(len(payload)))
        try:
            decoded = self._codec.decode(payload)
        except DecodeError as error:
            return InvalidEvent("", error.dead)
        if decoded.type not in self._schemas.events:
            return InvalidEvent(
                "", Dead(Reason.UNKNOWN_EVENT_TYPE, (Problem("", f"{decoded.type} is not a lead event type"),))
            )
        return self._validated(decoded.type, decoded.record, self._now(), sender, payload)

    def _completed(self, document: Item, now: int, tenant: str) -> tuple[Item, str]:
        envelope = document.get("envelope")
        if envelope is None:
            envelope = {}
        if not isinstance(envelope, dict) or max(len(document), len(envelope)) > _MAX_MEMBERS:
            return document, ""
        filled = dict(envelope)
        if filled.get("event_id") is None:
            filled["event_id"] = self._new_id()
        if filled.get("occurred_at") is None:
            filled["occurred_at"] = now
        if filled.get("source") is None:
            filled["source"] = _SOURCE
        if tenant and filled.get("tenant") in _NO_TENANT:
            filled["tenant"] = tenant
        return document | {"envelope": filled}, filled["event_id"] if isinstance(filled["event_id"], str) else ""

    def _validated(self, name: str, record: Item, now: int, sender: Sender, payload: bytes = b"") -> Checked:
        envelope, kind = record["envelope"], self._schemas.events[name]
        event_id = envelope["event_id"]
        if refused := forbidden(kind, envelope, sender):
            return InvalidEvent(event_id, refused)
        tenant = envelope["tenant"]
        if self._tenants is not None and (refused := self._tenants.refusal(tenant)):
            return InvalidEvent(event_id, refused)
        properties = check_event(kind, record, now, self._max_ahead_us, self._region(tenant))
        if isinstance(properties, Dead):
            return InvalidEvent(event_id, properties)
        value = payload or self._encoders[name](record)
        if len(value) > self._max_event_bytes:
            return InvalidEvent(event_id, self._too_large(len(value)))
        return ValidEvent(event_id, _key(record), value)

    def _region(self, tenant: str) -> str:
        file = None if self._tenants is None else self._tenants.get(tenant)
        return "" if file is None else file.phone_region or ""

    def _too_large(self, size: int) -> Dead:
        message = f"the event has {size} bytes; the maximum is {self._max_event_bytes}"
        return Dead(Reason.TOO_LARGE, (Problem("", message),))


def not_json(error: ValueError) -> str:
    """Return what is wrong with a text that orjson rejects, and the fix of what encoders get wrong most often."""
    text = str(error)
    if "surrogate" in text:
        return f"not JSON: {text}; half a character: cut texts between characters, not between UTF-16 units"
    if "expected a JSON value" in text or "infinity" in text:
        return f"not JSON: {text}; JSON has no NaN and no Infinity: send null, or leave the field out"
    return f"not JSON: {text}"


def numbered(items: list[Item]) -> list[Item]:
    """Add its ``index`` in the request to each item; reduce the problems to as many as one response may have.

    Guarantees: each rejected item keeps at least one problem; a response has about 1 MB at most.
    """
    left = _MAX_PROBLEMS - len(items)  # beyond the first of each
    for index, item in enumerate(items):
        item["index"] = index
        problems = item.get("problems", [])
        kept = problems[: 1 + max(0, left)]
        left -= max(0, len(kept) - 1)
        if len(kept) < len(problems):
            message = "more problems are left out: fix these, or send fewer invalid events in one request"
            item["problems"] = [*kept, {"path": "", "message": message}]
    return items


_NO_OBJECT = Dead(Reason.INVALID_FIELD, (Problem("", "an event must be a JSON object"),))


def _key(record: Item) -> bytes:
    """Return ``tenant:identifier``, so that the events of a person are on one partition, in order."""
    identifiers = record["identifiers"]
    crm_ids = identifiers["crm_ids"]
    identifier = (
        identifiers["external_id"]
        or normal_email(identifiers["email"])
        or identifiers["phone"]
        or identifiers["anonymous_id"]
    )
    if not identifier and crm_ids:
        first = min(crm_ids)
        identifier = f"{first}:{crm_ids[first]}"
    return f"{record['envelope']['tenant']}:{identifier}".encode()


class Acceptor:
    """Delivers checked events and builds the items of the response. Events wait for a limited time, in limited memory.

    ``timeout_s``: timeout of a delivery, in seconds; a little longer than the delivery timeout of the producer.
    """

    def __init__(self, deliverer: Deliverer, *, timeout_s: float) -> None:
        self._deliverer = deliverer
        self._timeout_s = timeout_s
        self._pending = 0

    async def accept(self, checked: Sequence[Checked], traceparent: str = "") -> tuple[int, list[Item]]:
        """Deliver the valid events of ``checked``; return the number of accepted ones and an item for each, in order.

        Raises:
            Refusal: ``overloaded``: too many events wait; no event was delivered.

        """
        good = [event for event in checked if isinstance(event, ValidEvent)]
        headers = [("traceparent", traceparent.encode())] if traceparent else None
        size = sum(len(event.value) for event in good)
        if self._pending + size > _MAX_PENDING_BYTES:
            raise Refusal("overloaded", "too many events are waiting for the broker")
        self._pending += size
        try:
            deliveries = iter(await self._deliver([Output(TOPIC, e.key, e.value, headers) for e in good]))
        finally:
            self._pending -= size
        items = [e.item if isinstance(e, InvalidEvent) else _delivered(e, next(deliveries)) for e in checked]
        for item in items:
            metrics.HTTP_EVENTS.labels(item["status"]).inc()
        return sum(item["status"] == "accepted" for item in items), items

    async def _deliver(self, outputs: Sequence[Output]) -> list[Delivery]:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._deliverer.deliver_each(outputs)
        except TimeoutError:
            return [Delivery(-1, -1, "TIMED_OUT")] * len(outputs)
        except KafkaException as error:  # the client rejects a record; earlier ones may be produced
            return [Delivery(-1, -1, error.args[0].name())] * len(outputs)


def _delivered(event: ValidEvent, delivery: Delivery) -> Item:
    if not delivery.error:
        where = {"topic": TOPIC, "partition": delivery.partition, "offset": delivery.offset}
        return {"event_id": event.event_id, "status": "accepted"} | where
    if delivery.error in _REFUSED:
        return InvalidEvent(
            event.event_id, Dead(Reason.TOO_LARGE, (Problem("", "the event is larger than the broker accepts"),))
        ).item
    return {"event_id": event.event_id, "status": "unknown", "reason": Reason.UNAVAILABLE.value}
