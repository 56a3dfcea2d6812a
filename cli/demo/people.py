"""Made-up people and what they do: the demonstration's events. The same seed gives the same events.

Names come from a short list, addresses from example domains. Each person drifts: first an unknown browser, then an
e-mail address, sometimes in other letters, a phone number, a customer number, a second device. Some events come in
bursts, some come late, some twice, and some are broken.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from schemas.codec import Codec
from schemas.registry import registry

_FIRST = ("Ada", "Grace", "Alan", "Edsger", "Barbara", "Donald", "Frances", "Ken", "Radia", "Leslie", "Margaret", "Tim")
_LAST = ("Stone", "Rivers", "Marsh", "Field", "Wood", "Hill", "Lake", "Brook", "Moor", "Dale", "Shore", "Heath")
_DOMAINS = ("example.com", "example.org", "example.net", "north.example", "south.example", "west.example")
_COUNTRIES = (("GB", "London"), ("DE", "Berlin"), ("US", "Oregon"), ("FR", "Paris"), ("IN", "Pune"), ("BR", "Recife"))
_PAGES = ("pricing", "docs", "blog/launch", "customers", "security", "changelog")
_DAY = 86_400_000_000
_DUPLICATES, _MALFORMED, _LATE, _BURST = 0.05, 0.01, 0.10, 0.02
_TOO_LARGE = 300_000  # bytes, more than LEADSTREAM_MAX_EVENT_BYTES
_STAYS_UNKNOWN, _BECOMES_CUSTOMER, _NEW_DEVICE = 0.6, 0.4, 0.1
_SHOWS_DEVICE, _SHOUTS, _GIVES_PHONE, _HALF, _BY_HTTP = 0.3, 0.2, 0.4, 0.5, 0.25

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sendable:
    """One record to send. ``event_id`` is "" where it is broken; ``form`` says how its value is written."""

    event_id: str
    key: bytes
    value: bytes
    form: str  # avro, confluent, json, http, broken
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
    mark: str  # so that the people of a later run are others: a CRM has an e-mail address once
    stage: int = 0
    devices: int = 1
    wants_mail: bool = False

    def identifiers(self) -> Json:
        """Return what the person is known by at this moment; more with every stage."""
        known: Json = {}
        device = f"browser-{self.number}-{self.rng.randrange(self.devices)}"
        if self.stage == 0 or self.rng.random() < _SHOWS_DEVICE:
            known["anonymous_id"] = device
        if self.stage >= 1:
            email = f"{self.first}.{self.last}.{self.number}{self.mark}@{self.domain}"
            known["email"] = email if self.rng.random() < _SHOUTS else email.lower()
        if self.stage > 1 and self.rng.random() < _GIVES_PHONE:
            number = f"2079{self.number:06d}"
            known["phone"] = f"+44 {number[:4]} {number[4:]}" if self.rng.random() < _HALF else f"+44{number}"
        if self.stage > 1 and self.rng.random() < _HALF:
            known["external_id"] = f"customer-{self.number}"
        return known


class People:
    """A generator of ``count`` events for ``tenant``, around ``now`` (microseconds since 1970)."""

    def __init__(self, tenant: str, count: int, seed: int, now: int, mark: str = "") -> None:
        self._tenant = tenant
        self._mark = mark
        self._count = count
        self._rng = random.Random(seed)
        self._now = now
        self._codec = Codec()
        self._encoders = {name: self._codec.encoder(name) for name in registry().events}
        self._people = [self._person(number) for number in range(max(1, count // 8))]

    def __iter__(self) -> Iterator[Sendable]:
        """Yield exactly ``count`` records, duplicates and broken ones among them."""
        sent: list[Sendable] = []
        burst: list[_Person] = []
        for index in range(self._count):
            chance = self._rng.random()
            if chance < _MALFORMED:
                yield self._broken(index)
                continue
            if chance < _MALFORMED + _DUPLICATES and sent:
                again = sent[self._rng.randrange(max(0, len(sent) - 2000), len(sent))]
                yield Sendable(again.event_id, again.key, again.value, again.form, duplicate=True)
                continue
            if not burst and self._rng.random() < _BURST / 20:
                burst = [self._rng.choice(self._people)] * self._rng.randrange(20, 60)
            person = burst.pop() if burst else self._rng.choice(self._people)
            made = self._event(index, person)
            sent.append(made)
            yield made

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
            self._mark,
        )

    def _event(self, index: int, person: _Person) -> Sendable:
        rng = person.rng
        kind, own = self._act(person)
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
        # One person's events take one way and one key, so that they stay in order.
        form = "http" if person.http else ("json", "confluent", "avro", "avro")[person.number % 4]
        key = f"{self._tenant}:{person.number}".encode()
        return Sendable(event_id, key, self._write(kind, record, form), form)

    def _write(self, kind: str, record: Json, form: str) -> bytes:
        if form in ("json", "http"):
            return orjson.dumps({"type": kind, **record})
        blank = {"external_id": "", "email": "", "phone": "", "anonymous_id": "", "crm_ids": {}}
        payload = self._encoders[kind](record | {"identifiers": blank | record["identifiers"]})
        if form == "avro":
            return payload
        return b"\0" + registry().events[kind].confluent_id.to_bytes(4, "big") + payload[10:]

    def _act(self, person: _Person) -> tuple[str, Json]:
        """Return what the person does next: an event type and its own fields."""
        rng = person.rng
        name = {"first_name": person.first, "last_name": person.last}
        work = {"company": f"{person.last} Works", "domain": person.domain}
        place = {"country": person.country[0], "region": person.country[1]}
        seen = {"url": f"https://www.example.com/{rng.choice(_PAGES)}", "title": "Example"}
        if person.stage == 0 and rng.random() < _STAYS_UNKNOWN:
            return "page_viewed", seen
        if person.stage == 0:
            person.stage = 1
            asked = rng.choice(("demo", "newsletter", "newsletter", "newsletter"))
            person.wants_mail = asked == "demo"
            answers = {"team_size": rng.choice(("1-10", "10-50", "50-200"))}
            return "form_submitted", {"form_id": asked, **name, **work, **place, "answers": answers}
        person.stage += person.stage == 1 and rng.random() < _BECOMES_CUSTOMER
        person.devices = 2 if rng.random() < _NEW_DEVICE else person.devices
        acts: tuple[tuple[int, str, Json], ...] = (
            (480, "page_viewed", seen),
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
        _, kind, own = rng.choices(acts, weights=[weight for weight, _, _ in acts])[0]
        # The same counts with the same seed: what a mail or an answer of a provider has to be faster than is left out.
        forgotten, withdrawn = kind == "lead_erased", own.get("status") == "withdrawn"
        if (person.wants_mail and (forgotten or withdrawn)) or (person.http and forgotten):
            return "page_viewed", seen
        return kind, dict(own)

    def _broken(self, index: int) -> Sendable:
        """Return a record that has to become a dead letter, each kind for another reason."""
        person = self._rng.choice(self._people)
        envelope = {"event_id": f"demo-{index:08d}", "tenant": self._tenant, "occurred_at": self._now, "source": "web"}
        good = {
            "type": "page_viewed",
            "envelope": envelope,
            "identifiers": {"anonymous_id": f"browser-{person.number}-0"},
        }
        blank = {"external_id": "", "email": "", "phone": "", "anonymous_id": "a", "crm_ids": {}}
        avro = self._encoders["page_viewed"]({"envelope": {**envelope, "context": {}}, "identifiers": blank})
        kinds = (
            avro[:-3],  # cut
            b"\xc3\x01" + b"\xff" * 8 + avro[10:],  # a fingerprint that nobody knows
            b"\x07 this is no event",
            b'{"type": "page_viewed", "envelope": ',
            orjson.dumps(good | {"type": "page_vewed"}),
            orjson.dumps(good | {"envelope": {**envelope, "event_id": 7}}),
            orjson.dumps(good | {"identifiers": {}}),
            orjson.dumps(good | {"envelope": {**envelope, "occurred_at": 1}}),
            orjson.dumps(good | {"colour": "blue"}),
            orjson.dumps(good | {"url": "x" * _TOO_LARGE}),
        )
        value = self._rng.choices(kinds, weights=(10, 10, 10, 10, 10, 10, 10, 10, 10, 1))[0]
        return Sendable("", f"{self._tenant}:{person.number}".encode(), value, "broken")
