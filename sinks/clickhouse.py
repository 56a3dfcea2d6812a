"""The ClickHouse sink: inserts lead changes, outcomes and dead letters, without decoding them.

The datum in a payload has the same encoding as in an Avro container file. So the payloads of one schema are joined
under one container header and inserted: one insert for each table and batch. A large batch is split into parallel
inserts, since one insert uses mainly one core. The row of a dead letter is built from its headers; its value, which may
contain personal data, stays on the topic.

Guarantees: inserts are at-least-once, and readers see each row once. A repeated batch has the same deduplication token
and is not inserted again. A payload that is not a record of its topic's schema becomes a dead letter. If ClickHouse
rejects a container, its records are decoded: those with odd ids or JSON are inserted one by one and the others
together, and what is still rejected is split in halves until the rejected record is alone. If ClickHouse rejects even
an empty container (no such table, no permission), the sink stops.

Crash: the same records may be cut into other batches afterwards, with other tokens. The views with the public names
then show each row once, by its identity (see the migrations).
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import orjson
from confluent_kafka import Message

from infra.clickhouse.client import ClickHouse, ClickHouseError
from infra.kafka.dead_letters import PREFIX, dead_letter
from infra.kafka.dead_letters import TOPIC as DEAD
from infra.kafka.processor import Outputs
from infra.kafka.producer import Output
from infra.outcomes import Dead, Problem, Reason
from schemas.codec import HEADER, MARKER, Codec, DecodeError, container, container_header
from schemas.lead import is_uuid
from schemas.registry import Registry, registry

STAGE = "sink-clickhouse"
TOPICS = ("leads.changed", "leads.outcomes", DEAD)
_RECORDS = {"leads.changed": "lead_change", "leads.outcomes": "outcome"}
_INSERT_ROWS = 25_000  # maximum rows of one insert; a larger batch is split, to use more cores


@dataclass(frozen=True, slots=True)
class _Group:
    """Messages of one schema, their payloads, and the table to insert them into."""

    table: str
    head: bytes
    messages: list[Message]
    payloads: list[bytes]

    def chosen(self, indexes: Sequence[int]) -> _Group:
        """Return the messages at ``indexes`` as a group."""
        messages, payloads = ([items[index] for index in indexes] for items in (self.messages, self.payloads))
        return _Group(self.table, self.head, messages, payloads)


@dataclass(frozen=True, slots=True)
class _Insert:
    """A group and its container file."""

    group: _Group
    container: bytes


@dataclass(frozen=True, slots=True)
class SortedBatch:
    """A batch grouped by schema, and the dead letters of payloads with an unknown or a wrong schema."""

    inserts: list[_Insert]
    dead: list[Output]


class ClickHouseSink:
    """The batch loop's processor of :data:`TOPICS`."""

    def __init__(self, server: ClickHouse, codec: Codec, schemas: Registry | None = None) -> None:
        self._server = server
        self._codec = codec
        known = schemas or registry()
        self._dead_letter = codec.encoder("dead_letter")
        names = (*_RECORDS.values(), "dead_letter")
        versions = [version for version in known.all_versions() if version.name in names]
        self._versions = {MARKER + each.fingerprint: (each.name, container_header(each)) for each in versions}

    def prepare(self, messages: Sequence[Message]) -> SortedBatch:
        """Group a batch by schema, without decoding it."""
        groups: dict[tuple[str, bytes], _Group | None] = {}
        dead: list[Output] = []
        for message in messages:
            topic, payload = message.topic(), message.value() or b""
            if topic == DEAD:
                payload = self._row(message)
            header = payload[:HEADER]
            try:
                group = groups[topic, header]
            except KeyError:
                group = groups[topic, header] = self._group(topic, header)
            if group is None:
                problem = Problem("", f"must be a {_RECORDS[topic]} record in Avro single-object encoding")
                dead.append(dead_letter(message, STAGE, Dead(Reason.UNKNOWN_SCHEMA, (problem,))))
            else:
                group.messages.append(message)
                group.payloads.append(payload)
        return SortedBatch([_packed(part) for group in groups.values() if group for part in _parts(group)], dead)

    def _group(self, topic: str, header: bytes) -> _Group | None:
        """Return an empty group for payloads with this single-object header, or None if ``topic`` is not for them."""
        name, head = self._versions.get(header, ("", b""))
        return _Group(f"landing_{name}", head, [], []) if name == _RECORDS.get(topic, "dead_letter") else None

    async def apply(self, prepared: SortedBatch) -> AsyncGenerator[Outputs, None]:
        """Insert all groups; return the dead letters of the batch.

        Raises:
            DependencyUnavailable: ClickHouse is unavailable.
            ClickHouseError: ClickHouse rejects even an empty container, so the records are not the cause.

        """
        refused = await asyncio.gather(*(self._insert(insert) for insert in prepared.inserts))
        dead = prepared.dead + [output for outputs in refused for output in outputs]
        yield dead

    async def _insert(self, insert: _Insert) -> list[Output]:
        group = insert.group
        try:
            await self._server.insert(group.table, "Avro", insert.container, token(group.table, group.messages))
        except ClickHouseError as error:
            if len(group.messages) == 1:
                # Raises if ClickHouse rejects even a container without records: then the record is not the cause.
                await self._server.insert(group.table, "Avro", group.head)
                problem = Problem("", f"ClickHouse rejected the record with error code {error.code}")
                return [dead_letter(group.messages[0], STAGE, Dead(Reason.REJECTED, (problem,)), "ClickHouseError")]
            parts, dead = self._split(group)
            return dead + [output for part in parts for output in await self._insert(_packed(part))]
        return []

    def _split(self, group: _Group) -> tuple[list[_Group], list[Output]]:
        """Return the parts of a rejected group to insert instead, and the dead letters of what cannot be decoded.

        Each record with odd ids or JSON is a part of its own, and the others are one; if there are none, two halves.
        """
        found: dict[str, list[int]] = {"fine": [], "odd": [], "undecodable": []}
        for index, payload in enumerate(group.payloads):
            found[self._quality(payload)].append(index)
        problem = Problem("", "the payload is not a record of its schema")
        dead = [
            dead_letter(group.messages[index], STAGE, Dead(Reason.REJECTED, (problem,)))
            for index in found["undecodable"]
        ]
        fine = found["fine"]
        if len(fine) == len(group.messages):
            return [group.chosen(fine[: len(fine) // 2]), group.chosen(fine[len(fine) // 2 :])], dead
        return [group.chosen(indexes) for indexes in (fine, *([index] for index in found["odd"])) if indexes], dead

    def _quality(self, payload: bytes) -> str:
        try:
            record = self._codec.decode(payload).record
        except DecodeError:
            return "undecodable"
        try:
            ids = [record["lead_id"], *record["merged"]] if "merged" in record else []
            sound = all(map(is_uuid, ids)) and isinstance(orjson.loads(record.get("lead", "{}")), dict)
        except ValueError:
            sound = False
        return "fine" if sound else "odd"

    def _row(self, message: Message) -> bytes:
        headers = {
            name.removeprefix(PREFIX): value for name, value in message.headers() or [] if name.startswith(PREFIX)
        }
        texts = {name: (value or b"").decode("utf-8", "replace") for name, value in headers.items()}
        record = {
            "at": _number(texts, "at", message.timestamp()[1] * 1000),
            "stage": texts.get("stage", ""),
            "reason": texts.get("reason", ""),
            "detail": texts.get("detail", ""),
            "topic": texts.get("topic", ""),
            "partition": _number(texts, "partition", -1, bits=32),
            "offset": _number(texts, "offset", -1),
            "dead_partition": message.partition(),
            "dead_offset": message.offset(),
            "size": len(message.value() or b""),
            "tenant": texts.get("tenant", ""),
            "event_id": texts.get("event_id", ""),
            "sender": texts.get("sender", ""),
        }
        return self._dead_letter(record)


def _parts(group: _Group) -> list[_Group]:
    count = len(group.messages)
    size = math.ceil(count / math.ceil(count / _INSERT_ROWS))
    return [group.chosen(range(start, min(start + size, count))) for start in range(0, count, size)]


def _packed(group: _Group) -> _Insert:
    return _Insert(group, container(group.head, group.payloads))


def token(table: str, messages: Sequence[Message]) -> str:
    """Return the deduplication token of a batch: a hash of the topic and of each partition's first, last and count."""
    partitions = [message.partition() for message in messages]
    offsets = [message.offset() for message in messages]
    last = dict(zip(partitions, offsets, strict=True))
    first = dict(zip(reversed(partitions), reversed(offsets), strict=True))
    counts = Counter(partitions)
    ranges = [(partition, first[partition], last[partition], counts[partition]) for partition in sorted(counts)]
    return f"{table}-{blake2b(repr((messages[0].topic(), ranges)).encode(), digest_size=16).hexdigest()}"


def _number(texts: Mapping[str, str], name: str, default: int, *, bits: int = 64) -> int:
    try:
        number = int(texts[name])
    except (KeyError, ValueError):
        return default
    return number if -(1 << bits - 1) <= number < 1 << bits - 1 else default
