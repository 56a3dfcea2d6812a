"""The books after the faults, read by SQL, from the topics and from the files of the simulators.

Each function returns what is wrong, in sentences: an empty list means that the book is right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import asyncpg
import orjson
from confluent_kafka import Message, TopicPartition

from infra.clickhouse.client import ClickHouse
from infra.kafka.client import metadata, reader
from infra.settings import Settings
from tests.chaos.load import Coordinates, Ledger

Event = tuple[str, str]  # tenant, event_id
_SHOWN = 5
_WAIT_S = 30
OWN = "leadstream:%"  # sources of events that the pipeline itself produces


def read_topic(settings: Settings, topic: str) -> dict[Coordinates, int]:
    """Read a whole topic; return the checksum of each record's value by its coordinates."""
    return {(m.partition(), m.offset()): crc32(m.value() or b"") for m in _messages(settings, topic)}


def suppressed_events(settings: Settings) -> set[Event]:
    """Return the events that are dead because they were said before their person was erased, and arrived after that."""
    found: set[Event] = set()
    for message in _messages(settings, "leads.dead"):
        headers = dict(message.headers() or ())
        if headers.get("leadstream.reason") == b"suppressed":
            found.add((headers["leadstream.tenant"].decode(), headers["leadstream.event_id"].decode()))
    return found


def _messages(settings: Settings, topic: str) -> Iterator[Message]:
    consumer = reader(settings, "chaos", {"enable.partition.eof": False})
    try:
        partitions = metadata(consumer, topic, timeout_s=_WAIT_S).topics[topic].partitions
        ends = {p: consumer.get_watermark_offsets(TopicPartition(topic, p), _WAIT_S)[1] for p in partitions}
        left = {p for p, end in ends.items() if end}
        consumer.assign([TopicPartition(topic, p, 0) for p in left])
        while left:
            messages = consumer.consume(10_000, _WAIT_S)
            if not messages:
                raise AssertionError(f"{topic}: nothing more to read in {_WAIT_S} s, but partitions {left} have more")
            yield from (message for message in messages if message.error() is None)
            left = {p for p in left if consumer.position([TopicPartition(topic, p)])[0].offset < ends[p]}
    finally:
        consumer.close()


def acknowledged(ledger: Ledger, topic: dict[Coordinates, int]) -> list[str]:
    """Compare what the broker acknowledged with what it has."""
    lost = [at for at in ledger.records if at not in topic]
    changed = [at for at, checksum in ledger.records.items() if topic.get(at, checksum) != checksum]
    return [*_some("acknowledged, and not in the topic", lost), *_some("has another value than was sent", changed)]


async def one_outcome(topic: dict[Coordinates, int], server: ClickHouse, tenants: str) -> list[str]:
    """Check that each record of leads.received is exactly one of: accepted, duplicate, dead."""
    ends: Counter[Coordinates] = Counter()
    for source in (
        "lead_events WHERE topic = 'leads.received'",
        "outcomes WHERE topic = 'leads.received' AND stage = 'intake' AND what = 'duplicate'",
        "dead_letters WHERE topic = 'leads.received' AND stage = 'intake'",
    ):
        statement = f"SELECT partition, offset FROM {source}"  # noqa: S608 - constants
        ends.update([(row["partition"], row["offset"]) async for row in _rows(server, statement, topic)])
    foreign = await server.query(
        "SELECT count() AS n FROM lead_events WHERE NOT startsWith(tenant, {word:String})", word=tenants
    )
    return [
        *_some("a record without an outcome", [at for at in topic if at not in ends]),
        *_some("a record with more than one outcome", [at for at, count in ends.items() if count > 1]),
        *_some("an outcome of no record", [at for at in ends if at not in topic]),
        *([f"{foreign[0]['n']} events of other tenants"] if foreign[0]["n"] else []),
    ]


async def _rows(server: ClickHouse, statement: str, topic: Iterable[Coordinates]) -> Any:
    for partition in sorted({p for p, _ in topic}):
        for row in await server.query(f"{statement} AND partition = {partition}"):
            yield row


async def accepted_once(ledger: Ledger, pool: asyncpg.Pool, word: str, suppressed: Collection[Event] = ()) -> list[str]:
    """Check that each acknowledged valid event is in lead_history once, or is suppressed, and no other is there."""
    rows = await pool.fetch(
        "SELECT tenant, event_id FROM lead_history WHERE tenant LIKE $1 AND source NOT LIKE $2", word + "-%", OWN
    )
    found = Counter((row["tenant"], row["event_id"]) for row in rows)
    return [
        *_some(
            "acknowledged, and not in lead_history",
            [each for each in ledger.events if each not in found and each not in suppressed],
        ),
        *_some("in lead_history more than once", [each for each, count in found.items() if count > 1]),
        *_some("in lead_history, and never sent", [each for each in found if each not in ledger.events]),
    ]


async def versions(pool: asyncpg.Pool, word: str) -> list[str]:
    """Check that the versions of each lead are 1 to n, without a gap, and that n is the lead's version."""
    gaps = await pool.fetch(
        """
        SELECT lead_id::text AS lead FROM lead_history WHERE tenant LIKE $1
        GROUP BY lead_id HAVING min(version) <> 1 OR max(version) <> count(*) OR count(DISTINCT version) <> count(*)
        """,
        word + "-%",
    )
    other = await pool.fetch(
        """
        SELECT l.lead_id::text AS lead FROM leads l WHERE l.tenant LIKE $1 AND l.merged_into IS NULL
          AND l.version <> (SELECT coalesce(max(h.version), 0) FROM lead_history h WHERE h.lead_id = l.lead_id)
        """,
        word + "-%",
    )
    return [
        *_some("a gap in the versions of lead", [row["lead"] for row in gaps]),
        *_some("the version is not the history's last, of lead", [row["lead"] for row in other]),
    ]


async def clickhouse_equals_postgres(pool: asyncpg.Pool, server: ClickHouse, word: str) -> list[str]:
    """Compare every accepted event and every live lead of the two stores, field by field."""
    wrong: list[str] = []
    events_here = (
        "SELECT lead_id::text, version, event_id FROM lead_history WHERE tenant LIKE $1 AND lead_id::text LIKE $2"
    )
    events_there = (
        "SELECT toString(original_lead_id) AS lead_id, version, event_id FROM lead_events"
        " WHERE startsWith(tenant, {word:String}) AND startsWith(toString(original_lead_id), {digit:String})"
    )
    # lead_history and leads are compared without the columns that ClickHouse does not have.
    leads_here = (
        "SELECT lead_id::text, version, coalesce(email, '') AS email, coalesce(status, '') AS status,"
        " coalesce(owner, '') AS owner, coalesce(region, '') AS region, score FROM leads"
        " WHERE tenant LIKE $1 AND merged_into IS NULL AND lead_id::text LIKE $2"
    )
    leads_there = (
        "SELECT toString(lead_id) AS lead_id, version, email, status, owner, region, score FROM leads"
        " WHERE startsWith(tenant, {word:String}) AND startsWith(toString(lead_id), {digit:String})"
    )
    for prefix in await _prefixes(pool, word):
        for name, here, there in (("event", events_here, events_there), ("lead", leads_here, leads_there)):
            left = Counter(tuple(row) for row in await pool.fetch(here, word + "-%", prefix + "%"))
            right = Counter(tuple(row.values()) for row in await server.query(there, word=word, digit=prefix))
            wrong += _some(f"{name} in Postgres, and not in ClickHouse", list((left - right).elements()))
            wrong += _some(f"{name} in ClickHouse, and not in Postgres", list((right - left).elements()))
    return wrong


async def _prefixes(pool: asyncpg.Pool, word: str) -> list[str]:
    """Return beginnings of lead ids (which start with their time) that select parts of bounded size."""
    rows = await pool.fetch(
        "SELECT DISTINCT left(lead_id::text, 7) AS p FROM lead_history WHERE tenant LIKE $1", word + "-%"
    )
    return sorted(row["p"] for row in rows)


def contacts(file: Path) -> dict[str, dict[str, str]]:
    """Return the contacts of the CRM simulator's file by their ids."""
    found: dict[str, dict[str, str]] = {}
    for line in file.read_bytes().splitlines():
        change = orjson.loads(line) if line else {}
        for contact_id, properties in change.get("set", {}).items():
            found.setdefault(contact_id, {}).update(properties)
        for contact_id in change.get("gone", ()):
            found.pop(contact_id, None)
    return found


async def crm_equals_leads(pool: asyncpg.Pool, file: Path, word: str) -> list[str]:
    """Check that the CRM has one contact of each live lead, with its e-mail address, and none of an erased one."""
    rows = await pool.fetch(
        """
        SELECT lead_id::text, coalesce(email, '') FROM leads WHERE tenant LIKE $1 AND merged_into IS NULL
          AND NOT (erased_at IS NOT NULL AND attributes = '{}')
        """,
        word + "-%",
    )
    wanted = Counter((lead, email.lower()) for lead, email in rows)
    there = Counter(
        (each.get("leadstream_lead_id", ""), each.get("email", "").lower()) for each in contacts(file).values()
    )
    return [
        *_some("no contact of lead", [lead for lead, _ in (wanted - there).elements()]),
        *_some("a contact of no lead, or a second one, of lead", [lead for lead, _ in (there - wanted).elements()]),
    ]


def message_ids(file: Path) -> Counter[str]:
    """Return how often each Message-ID was received, from the file of the SMTP simulator."""
    lines = file.read_bytes().splitlines() if file.exists() else []
    return Counter(orjson.loads(line)["message_id"] for line in lines)


async def mails_sent(pool: asyncpg.Pool, file: Path, word: str) -> tuple[list[str], int, int]:
    """Compare the messages with the mails; return what is wrong, the mails, and those that were delivered again."""
    states = dict(
        await pool.fetch("SELECT state, count(*) FROM messages_sent WHERE tenant LIKE $1 GROUP BY 1", word + "-%")
    )
    ids = message_ids(file)
    sent = states.pop("sent", 0)
    unfinished = {name: count for name, count in states.items() if name not in {"skipped", "failed"}}
    wrong = [f"{sent} messages are sent, but {len(ids)} different mails were received"] * (sent != len(ids))
    wrong += [f"messages are not finished: {unfinished}"] * bool(unfinished)
    return wrong, len(ids), ids.total() - len(ids)


async def enrichment_ended(settings: Settings, server: ClickHouse) -> tuple[list[str], int]:
    """Check that each enrichment request has an outcome; return also the number of requests.

    A request that no provider could answer is a row of enrichment_work: there must be none left.
    """
    requests = read_topic(settings, "leads.enrichment-requested")
    statement = (
        "SELECT partition, offset FROM outcomes WHERE stage = 'enrichment' AND topic = 'leads.enrichment-requested'"
    )
    ended = {(row["partition"], row["offset"]) async for row in _rows(server, statement, requests)}
    return _some("an enrichment request that has not ended", [at for at in requests if at not in ended]), len(requests)


def _some(what: str, found: list[Any]) -> list[str]:
    return [f"{what}: {len(found)}, such as {', '.join(map(str, _first(found)))}"] if found else []


def _first(found: list[Any]) -> Iterator[Any]:
    yield from sorted(found, key=str)[:_SHOWN]
