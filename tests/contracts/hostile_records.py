"""The hostile corpus: records that somebody could write to a topic, by kind, and good records of each topic."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

from infra.clock import now_us
from infra.kafka.sizes import topic_limits
from infra.kafka.topics import load_topics
from schemas.codec import HEADER
from schemas.registry import registry
from tests.events import CODEC, record

Headers = list[tuple[str, bytes | None]]
TOPICS = {  # topic -> the type of its records
    "leads.received": "lead_updated",
    "leads.changed": "lead_change",
    "leads.enrichment-requested": "enrichment_request",
    "leads.campaign-signals": "campaign_signal",
    "leads.crm-hubspot": "crm_wanted",
    "leads.messages-requested": "message_request",
    "leads.outcomes": "outcome",
    "leads.dead": "dead_letter",
}
CONSUMERS = {  # topic -> consumer group
    "leads.received": "intake",
    "leads.changed": "sink-clickhouse",
    "leads.enrichment-requested": "enrichment",
    "leads.campaign-signals": "campaigns",
    "leads.crm-hubspot": "crm-hubspot",
    "leads.messages-requested": "messages-email",
    "leads.outcomes": "sink-clickhouse",
    "leads.dead": "sink-clickhouse",
}
_OVERHEAD = 2_000  # bytes of a batch, beside the value of its only record
_LONGS = {"minimum": -(2**63), "maximum": 2**63 - 1, "zero": 0, "minus one": -1, "seconds": 1_795_165_200}
_TEXTS = {
    "NUL": "a\0b",
    "empty": "",
    "blank": " \u00a0\u200b",
    "4,000 characters": "x" * 4000,
    "60,000 characters": "\u6f22" * 20_000,
    "control characters": "\r\nBcc: b@example.com\x1b[31m\x7f",
    "quotes": "'\"\\; DROP TABLE leads; -- {{ 7*7 }} {% raw %} $1 %s",
    "noncharacters": "\ufffe\uffff\U0010ffff\u202e",
    "a path": "../../etc/passwd",
}


class Hostile(NamedTuple):
    """A record of the corpus."""

    kind: str
    value: bytes | None
    key: bytes | None = b"hostile"
    headers: Headers = []  # noqa: RUF012 - never changed


def good_record(topic: str, unique: str, **changes: Any) -> dict[str, Any]:
    """Return a valid record of ``topic`` in the tenant ``unique``."""
    lead = {"lead_id": str(uuid.uuid4()), "tenant": unique, "version": 1, "email": f"{uuid.uuid4().hex}@example.com"}
    now = now_us()
    common: dict[str, Any] = {
        "tenant": unique,
        "event_id": f"good-{uuid.uuid4().hex}",
        "lead_id": lead["lead_id"],
        "version": 1,
    }
    common |= {"decided_at": now, "occurred_at": now, "received_at": now, "requested_at": now, "at": now}
    common |= {"topic": "leads.received", "partition": 0, "offset": random.randrange(1 << 60)}
    common |= {"lead": json.dumps(lead | {"consent": {"marketing": "granted"}}), "properties": '{"form_id": "demo"}'}
    common |= {"changes": "{}", "merged": [], "event_type": "form_submitted", "source": "web", "own": False}
    common |= {
        "stage": "hostile",
        "what": "skipped",
        "reason": "empty",
        "dead_partition": 0,
        "dead_offset": 1,
        "size": 1,
    }
    common |= {"context": {"utm_source": "x"}, "sender": "", "detail": ""}
    common |= {"message_id": uuid.uuid4().hex, "campaign": "none", "channel": "email", "to": lead["email"]}
    common |= {"purpose": "marketing", "once_per": "event", "subject": "Hello", "body": "<p>Hello</p>"}
    if TOPICS[topic] in registry().events:
        made = record(TOPICS[topic], common["event_id"], tenant=unique, at=now, email=lead["email"], title="Good")
        return made | changes
    names = {field["name"] for field in registry().types[TOPICS[topic]].source["fields"]}
    return {name: value for name, value in (common | changes).items() if name in names}


def encoded(topic: str, made: dict[str, Any]) -> bytes:
    """Return the Avro encoding of a record of ``topic``."""
    return CODEC.encoder(TOPICS[topic])(made)


def corpus(topic: str, unique: str) -> Iterator[Hostile]:
    """Yield the hostile records of ``topic``: at least 60 kinds."""
    yield from _bytes(topic)
    yield from _json(topic, unique)
    yield from _fields(topic, unique)
    yield from _keys_and_headers(topic, unique)
    for name, kind in registry().types.items():
        if name != TOPICS[topic] and name != "lead":
            yield Hostile(f"a record of type {name}", CODEC.encoder(name)(kind.example))


def _bytes(topic: str) -> Iterator[Hostile]:
    limit = topic_limits()[topic]
    rng = random.Random(topic)
    good = encoded(topic, good_record(topic, "hostile"))
    yield Hostile("no value", None)
    yield Hostile("empty value", b"")
    yield Hostile("one byte", b"\xc3")
    yield Hostile("text", b"hello")
    yield Hostile("random bytes", rng.randbytes(300))
    yield Hostile("random bytes, as large as the topic allows", rng.randbytes(limit - _OVERHEAD))
    yield Hostile("a single-object header alone", good[:HEADER])
    yield Hostile("half a header", good[:5])
    yield Hostile("truncated", good[:-3])
    yield Hostile("extra bytes", good + b"\0")
    yield Hostile("unknown fingerprint", good[:2] + b"\xff" * 8 + good[HEADER:])
    yield Hostile("huge lengths", good[:HEADER] + b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01" * 20)
    yield Hostile("negative lengths", good[:HEADER] + b"\x01" * 100)
    yield Hostile("zeros", good[:HEADER] + b"\0" * 1000)
    yield Hostile("invalid UTF-8", good.replace(b"good", b"\xff\xfe\xc0\x80"))
    yield Hostile("surrogates in UTF-8", good.replace(b"good", b"\xed\xa0\xbd\x00"))
    yield Hostile("Confluent framing, unknown id", b"\0\xff\xff\xff\xff" + good[HEADER:])
    yield Hostile("Confluent framing, no datum", b"\0\0\0\0\x01")
    yield Hostile("Confluent framing, own id", b"\0" + _own_id(topic) + good[HEADER:])


def _own_id(topic: str) -> bytes:
    return registry().types[TOPICS[topic]].confluent_id.to_bytes(4, "big")


def _json(topic: str, unique: str) -> Iterator[Hostile]:
    limit = topic_limits()[topic] - _OVERHEAD
    event = {"type": "lead_updated", **record("lead_updated", "hostile-json", tenant=unique, email="a@example.com")}
    text = json.dumps(event)
    yield Hostile("JSON: NaN", text.replace('"score": null', '"score": NaN').encode())
    yield Hostile("JSON: infinite", text.replace('"score": null', '"score": 1e999').encode())
    yield Hostile("JSON: 1e308", text.replace('"score": null', '"score": 1e308').encode())
    yield Hostile("JSON: 65 bits", text.replace('"employees": null', f'"employees": {2**64}').encode())
    yield Hostile("JSON: 4,000 digits", text.replace('"employees": null', '"employees": ' + "9" * 4000).encode())
    yield Hostile("JSON: half an emoji", text.replace('"title": ""', '"title": "\\ud83d"').encode())
    yield Hostile("JSON: NUL", text.replace('"title": ""', '"title": "a\\u0000b"').encode())
    yield Hostile("JSON: cut off", text[:-9].encode())
    yield Hostile("JSON: an array", f"[{text}]".encode())
    yield Hostile("JSON: byte order mark", b"\xef\xbb\xbf" + text.encode())
    yield Hostile("JSON: UTF-16", text.encode("utf-16"))
    yield Hostile("JSON: key twice", text.replace('"title": ""', '"title": "a", "title": "b"').encode())
    yield Hostile("JSON: nested 100,000 deep", b'{"type":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    yield Hostile("JSON: unknown keys", json.dumps(event | {f"k{n}": n for n in range(50_000)}).encode()[:limit])
    yield Hostile("JSON: one long string", json.dumps(event | {"title": "x" * (limit - 2000)}).encode())
    yield Hostile("JSON: type of a megabyte", json.dumps(event | {"type": "x" * (limit - 2000)}).encode())
    for name, custom in {
        "keys with dots": {"": "a", ".": "b", "a.b": "c", "..": "d"},
        "200 keys with dots": {f"a.{n}." * 5: "x" for n in range(200)},
        "201 keys": {f"k{n}": "x" for n in range(201)},
        "keys of provenance": {"_erased": "x", "_hidden": "y", "first_touch": "z", "__proto__": "p"},
        "a key of NUL": {"\0": "x"},
    }.items():
        yield Hostile(f"JSON: {name}", json.dumps(event | {"custom": custom}).encode())
    envelopes: dict[str, Any] = {"no envelope": None, "a list": [], "empty": {}, "text": "x"}
    for name, envelope in envelopes.items():
        yield Hostile(f"JSON: envelope is {name}", json.dumps(event | {"envelope": envelope}).encode())


def _fields(topic: str, unique: str) -> Iterator[Hostile]:
    """Yield records with one extreme value in each field."""
    made = good_record(topic, unique)
    kind = registry().types[TOPICS[topic]].full_schema
    places: list[tuple[str, ...]] = [(field["name"],) for field in kind["fields"]]
    if "envelope" in made:
        places += [("envelope", name) for name in made["envelope"]] + [("identifiers", n) for n in made["identifiers"]]
    for place in places:
        old: Any = made
        for name in place:
            old = old[name]
        values: dict[str, Any] = _LONGS if type(old) is int else _TEXTS if type(old) is str else {}
        if (type(old) is dict and place[0] not in ("envelope", "identifiers")) or place[-1] in ("context", "crm_ids"):
            values = {"odd keys": {"": "a", "a.b": "b", "\0": "c", "x" * 4000: "d", " ": " "}}
        for name, value in values.items():
            changed = json.loads(json.dumps(made))
            holder = changed
            for step in place[:-1]:
                holder = holder[step]
            holder[place[-1]] = value if not (name in ("minimum", "maximum") and _is_int(kind, place)) else value >> 32
            yield Hostile(f"/{'/'.join(place)}: {name}", encoded(topic, changed))
    if "lead" in made:
        yield from _leads(topic, unique)
    for lead_id in ("", "no uuid", "{%s}", "urn:uuid:%s", "%s ", "%S"):
        if "lead_id" in made:
            spelled = lead_id.replace("%S", made["lead_id"].upper()).replace("%s", made["lead_id"])
            yield Hostile(f"/lead_id: {lead_id or 'empty'}", encoded(topic, made | {"lead_id": spelled}))


def _is_int(kind: dict[str, Any], place: tuple[str, ...]) -> bool:
    return len(place) == 1 and next(f["type"] for f in kind["fields"] if f["name"] == place[0]) == "int"


def _leads(topic: str, unique: str) -> Iterator[Hostile]:
    lead = json.loads(good_record(topic, unique)["lead"])
    for name, changes in {
        "of a mebibyte": {"custom": {f"k{n}": "x" * 8000 for n in range(128)}},
        "whose email is a number": {"email": 7},
        "whose consent is a list": {"consent": ["marketing"]},
        "whose version is 2^70": {"version": 2**70},
        "whose version is text": {"version": "1"},
        "with a field that no lead has": {"nobody": {"knows": [None, 1e308]}},
        "without an id": {"lead_id": None},
        "with NUL": {"first_name": "a\0b", "custom": {"\0": "\0"}},
        "with template syntax": {"first_name": "{{ 1/0 }}{% for x in y %}", "email": "{{ x }}@example.com"},
    }.items():
        yield Hostile(f"a lead {name}", encoded(topic, good_record(topic, unique, lead=json.dumps(lead | changes))))
    for text in ("", "null", "[]", '"x"', "{}", "{" * 1000, "NaN"):
        yield Hostile(f"lead is {text[:9]!r}", encoded(topic, good_record(topic, unique, lead=text)))
        if "properties" in good_record(topic, unique):
            made = good_record(topic, unique, properties=text)
            yield Hostile(f"properties are {text[:9]!r}", encoded(topic, made))


def _keys_and_headers(topic: str, unique: str) -> Iterator[Hostile]:
    limit = topic_limits()[topic]
    good, bad = encoded(topic, good_record(topic, unique)), b"\xffbad"
    room = limit - len(good) - _OVERHEAD
    forged: Headers = [("leadstream.reason", b"forged"), ("leadstream.offset", b"9" * 400), ("leadstream.at", b"-1")]
    for what, value in (("good", good), ("bad", bad)):
        named: dict[str, Headers] = {
            "a traceparent that fills the topic": [("traceparent", b"0" * room)],
            "1,000 traceparents": [("traceparent", b"00-%032x-%016x-01" % (n, n)) for n in range(1000)],
            "10,000 headers": [(f"h{n}", b"x" * 5) for n in range(10_000)],
            "headers without value": [("traceparent", None), ("x", None), ("x", b""), ("", b"no name")],
            "forged headers of ours": [*forged, ("leadstream.topic", b"\xff\0"), *forged],
            "headers of bytes": [("source", bytes(range(256))), ("\u6f22", b"\xff")],
        }
        for name, headers in named.items():
            yield Hostile(f"{name}, {what} value", value, b"k", headers)
        keys = {"no key": None, "an empty key": b"", "a key of bytes": bytes(range(256))}
        if "compact" in load_topics()[topic].config["cleanup.policy"]:
            del keys["no key"]  # the broker refuses the whole batch
        for name, key in keys.items():
            yield Hostile(f"{name}, {what} value", value, key)
        yield Hostile(f"a key that fills the topic, {what} value", value, b"k" * room)


def mutated(value: bytes, rng: random.Random) -> bytes:
    """Return ``value`` with one to four random changes."""
    changed = bytearray(value)
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(len(changed) + 1), rng.randint(1, 20)
        how = rng.randrange(5)
        if how == 0 and at < len(changed):
            changed[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif how == 1:
            del changed[at : at + length]
        elif how == 2:
            changed[at:at] = rng.randbytes(length)
        elif how == 3:
            changed[at:at] = changed[at : at + length]
        else:
            changed[at : at + length] = rng.choice(
                (b"NaN", b"\\ud800", b"1e999", b"null", b"{}", b'"', b"\0" * 8, b"-")
            )
    return bytes(changed)
