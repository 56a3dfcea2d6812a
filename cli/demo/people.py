"""Generates the events of the demo: activities of fictional people.

The same seed gives the same events. Names come from a short list, e-mail addresses from example domains. The
identifiers of a person grow over time: first a browser id, then an e-mail address (sometimes in upper case), a phone
number, a customer number, a second device. Some events come in bursts, some are late, duplicate or malformed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import orjson

from schemas.codec import HEADER, MARKER, Codec
from schemas.registry import registry

_FIRST = ("Ada", "Grace", "Alan", "Edsger", "Barbara", "Donald", "Frances", "Ken", "Radia", "Leslie", "Margaret", "Tim")
_LAST = ("Stone", "Rivers", "Marsh", "Field", "Wood", "Hill", "Lake", "Brook", "Moor", "Dale", "Shore", "Heath")
_DOMAINS = ("example.com", "example.org", "example.net", "north.example", "south.example", "west.example")
_COUNTRIES = (("GB", "London"), ("DE", "Berlin"), ("US", "Oregon"), ("FR", "Paris"), ("IN", "Pune"), ("BR", "Recife"))
_PAGES = ("pricing", "docs", "blog/launch", "customers", "security", "changelog")
_DAY = 86_400_000_000
_DUPLICATES, _MALFORMED, _LATE, _BURST = 0.05, 0.01, 0.10, 0.02
_TOO_LARGE = 300_000  # bytes, more than LEADSTREAM_MAX_EVENT_BYTES
_STAYS_ANONYMOUS, _BECOMES_CUSTOMER, _NEW_DEVICE = 0.6, 0.4, 0.1
_SENDS_DEVICE, _MIXED_CASE_EMAIL, _SENDS_PHONE, _HALF, _BY_HTTP = 0.3, 0.2, 0.4, 0.5, 0.25

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class DemoRecord:
    """One record to send; ``event_id`` is "" if the record is malformed."""

    event_id: str
    key: bytes
    value: bytes
    form: str  # wire format and transport: avro, confluent and json by Kafka, http (JSON); or broken (malformed)
    duplicate: bool = False


@dataclass(slots=True)
class _Person:
    number: int
    rng: random.Random
    first: str
    last: str
    domain: str
    country: tuple[str, str]
    http: bool
    suffix: str  # part of the e-mail address: different in each run, since a CRM has one record per address
    stage: int = 0  # 0 anonymous, 1 with an e-mail address, 2 customer
    devices: int = 1
    wants_mail: bool = False
    erased: bool = False

    def identifiers(self) -> Json:
        """Return the identifiers of the person's next event; the later the stage, the more."""
        known: Json = {}
        device = f"browser-{self.number}-{self.rng.randrange(self.devices)}"
        if self.stage == 0 or self.rng.random() < _SENDS_DEVICE:
            known["anonymous_id"] = device
        if self.stage >= 1:
            email = f"{self.first}.{self.last}.{self.number}{self.suffix}@{self.domain}"
            known["email"] = email if self.rng.random() < _MIXED_CASE_EMAIL else email.lower()
        if self.stage > 1 and self.rng.random() < _SENDS_PHONE:
            number = f"2079{self.number:06d}"
            known["phone"] = f"+44 {number[:4]} {number[4:]}" if self.rng.random() < _HALF else f"+44{number}"
        if self.stage > 1 and self.rng.random() < _HALF:
            known["external_id"] = f"customer-{self.number}"
        return known


class People:
    """Iterates over generated records.

    Args:
        tenant: of all events.
        count: number of records, malformed and duplicate ones included.
        seed: of all random choices.
        now: time of the last event, in microseconds since 1970.
        suffix: makes the e-mail addresses of one run different from those of another run.

    """

    def __init__(self, tenant: str, count: int, seed: int, now: int, suffix: str = "") -> None:
        self._tenant = tenant
        self._suffix = suffix
        self._count = count
        self._rng = random.Random(seed)
        self._now = now
        self._codec = Codec()
        self._encoders = {name: self._codec.encoder(name) for name in registry().events}
        self._people = [self._person(number) for number in range(max(1, count // 8))]

    def __iter__(self) -> Iterator[DemoRecord]:
        """Yield exactly ``count`` records."""
        events: list[DemoRecord] = []
        burst: list[_Person] = []
        for index in range(self._count):
            chance = self._rng.random()
            if chance < _MALFORMED:
                yield self._malformed(index)
                continue
            if chance < _MALFORMED + _DUPLICATES and events:
                earlier = events[self._rng.randrange(max(0, len(events) - 2000), len(events))]
                yield replace(earlier, duplicate=True)
                continue
            if not burst and self._rng.random() < _BURST / 20:
                burst = [self._rng.choice(self._people)] * self._rng.randrange(20, 60)
            person = burst.pop() if burst else self._rng.choice(self._people)
            event = self._event(index, person)
            if person.erased:  # another person follows: further events of an erased one would be refused
                slot = person.number % len(self._people)
                self._people[slot], burst = self._person(person.number + len(self._people)), []
            events.append(event)
            yield event

    def _person(self, number: int) -> _Person:
        rng = random.Random(self._rng.random())
        return _Person(
            number,
            rng,
            rng.choice(_FIRST),
            rng.choice(_LAST),
            rng.choice(_DOMAINS),
            rng.choice(_COUNTRIES),
            rng.random() < _BY_HTTP,
            self._suffix,
        )

    def _event(self, index: int, person: _Person) -> DemoRecord:
        rng = person.rng
        kind, own = self._activity(person)
        late = rng.randrange(30) * _DAY if rng.random() < _LATE else 0
        occurred_at = self._now - (self._count - index) * 1000 - late
        event_id = f"demo-{index:08d}"
        record = {
            "envelope": {
                "event_id": event_id,
                "tenant": self._tenant,
                "occurred_at": occurred_at,
                "source": own.pop("source", "web"),
                "context": {"utm_source": rng.choice(("newsletter", "search", "partner"))},
            },
            "identifiers": person.identifiers(),
            **own,
        }
        # All events of a person have one transport and one key, so that they stay in order.
        form = "http" if person.http else ("json", "confluent", "avro", "avro")[person.number % 4]
        key = f"{self._tenant}:{person.number}".encode()
        return DemoRecord(event_id, key, self._encode(kind, record, form), form)

    def _encode(self, kind: str, record: Json, form: str) -> bytes:
        if form in ("json", "http"):
            return orjson.dumps({"type": kind, **record})
        blank = {"external_id": "", "email": "", "phone": "", "anonymous_id": "", "crm_ids": {}}
        payload = self._encoders[kind](record | {"identifiers": blank | record["identifiers"]})
        if form == "avro":
            return payload
        return b"\0" + registry().events[kind].confluent_id.to_bytes(4, "big") + payload[HEADER:]

    def _activity(self, person: _Person) -> tuple[str, Json]:
        """Return the type and the own fields of the person's next event."""
        rng = person.rng
        name = {"first_name": person.first, "last_name": person.last}
        work = {"company": f"{person.last} Works", "domain": person.domain}
        place = {"country": person.country[0], "region": person.country[1]}
        page = {"url": f"https://www.example.com/{rng.choice(_PAGES)}", "title": "Example"}
        if person.stage == 0 and rng.random() < _STAYS_ANONYMOUS:
            return "page_viewed", page
        if person.stage == 0:
            person.stage = 1
            form_id = rng.choice(("demo", "newsletter", "newsletter", "newsletter"))
            person.wants_mail = form_id == "demo"
            answers = {"team_size": rng.choice(("1-10", "10-50", "50-200"))}
            return "form_submitted", {"form_id": form_id, **name, **work, **place, "answers": answers}
        person.stage += person.stage == 1 and rng.random() < _BECOMES_CUSTOMER
        person.devices = 2 if rng.random() < _NEW_DEVICE else person.devices
        activities: tuple[tuple[int, str, Json], ...] = (  # weight, event type, own fields
            (480, "page_viewed", page),
            (
                160,
                "email_engaged",
                {"action": rng.choice(("opened", "clicked")), "campaign": "spring", "source": "mail"},
            ),
            (
                120,
                "lead_updated",
                {
                    "score": float(rng.randrange(100)),
                    "status": rng.choice(("new", "working", "qualified")),
                    "custom": {"plan": rng.choice(("trial", "pro"))},
                    "source": "product",
                },
            ),
            (60, "activity_recorded", {"name": "trial_started", "properties": {"seats": "5"}, "source": "product"}),
            (
                50,
                "consent_changed",
                {"purpose": "marketing", "status": rng.choice(("granted", "granted", "withdrawn"))},
            ),
            (40, "meeting_booked", {"starts_at": self._now + rng.randrange(1, 14) * _DAY, "with_owner": "sales-1"}),
            (
                40,
                "crm_record_changed",
                {"crm": "hubspot", "record_id": f"{person.number}", "owner": "sales-2", "source": "crm"},
            ),
            (30, "lead_created", {**name, **place, "source": "import"}),
            (15, "enrichment_completed", {"provider": "import", **work, "industry": "software", "source": "import"}),
            (5, "lead_erased", {"reason": "request", "source": "privacy"}),
        )
        _, kind, own = rng.choices(activities, weights=[weight for weight, _, _ in activities])[0]
        # Events whose effect depends on timing are replaced, so that the same seed gives the same counts: an erasure or
        # a withdrawn consent could come before or after an e-mail or an enrichment result.
        erased, withdrawn = kind == "lead_erased", own.get("status") == "withdrawn"
        if (person.wants_mail and (erased or withdrawn)) or (person.http and erased):
            return "page_viewed", page
        person.erased = erased
        return kind, dict(own)

    def _malformed(self, index: int) -> DemoRecord:
        """Return a record that must become a dead letter; there is one kind for each reason."""
        person = self._rng.choice(self._people)
        envelope = {"event_id": f"demo-{index:08d}", "tenant": self._tenant, "occurred_at": self._now, "source": "web"}
        valid = {
            "type": "page_viewed",
            "envelope": envelope,
            "identifiers": {"anonymous_id": f"browser-{person.number}-0"},
        }
        blank = {"external_id": "", "email": "", "phone": "", "anonymous_id": "a", "crm_ids": {}}
        avro = self._encoders["page_viewed"]({"envelope": {**envelope, "context": {}}, "identifiers": blank})
        kinds = (
            avro[:-3],  # truncated
            MARKER + b"\xff" * 8 + avro[HEADER:],  # unknown fingerprint
            b"\x07 this is no event",
            b'{"type": "page_viewed", "envelope": ',
            orjson.dumps(valid | {"type": "page_vewed"}),
            orjson.dumps(valid | {"envelope": {**envelope, "event_id": 7}}),
            orjson.dumps(valid | {"identifiers": {}}),
            orjson.dumps(valid | {"envelope": {**envelope, "occurred_at": 1}}),
            orjson.dumps(valid | {"colour": "blue"}),
            orjson.dumps(valid | {"url": "x" * _TOO_LARGE}),
        )
        value = self._rng.choices(kinds, weights=(10, 10, 10, 10, 10, 10, 10, 10, 10, 1))[0]
        return DemoRecord("", f"{self._tenant}:{person.number}".encode(), value, "broken")
