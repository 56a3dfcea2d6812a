"""The ClickHouse sink: lead changes, outcomes and dead letters, for analysts. It never decodes.

An Avro container file holds data as a payload does, so the payloads of one schema are joined under one header and
inserted as they are: one insert a table and batch, and two in parallel for a large batch, since an insert uses one core
for the most part. Dead letters become rows from their headers alone; their values, which may be personal data, stay on
the topic.

Guarantees: at-least-once inserts, and each row once for readers. A repeated batch carries the same deduplication token
and is not inserted again.

Crash: the batches may be cut differently afterwards; then the stores' identities (see the migrations) make the views
under the public names show each row once.

A payload that is not a record of ours becomes a dead letter. When ClickHouse rejects a container, it is halved until
the bad record is alone. When ClickHouse rejects everything (no such table, not allowed), the sink stops instead.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from confluent_kafka import Message

from infra.clickhouse.client import ClickHouse, ClickHouseError
from infra.kafka.dead_letters import PREFIX, dead_letter
from infra.kafka.dead_letters import TOPIC as DEAD
from infra.kafka.processor import Effects
from infra.kafka.producer import Output
from infra.outcomes import Dead, Problem, Reason
from schemas.codec import HEADER, MARKER, Codec, container, container_header
from schemas.registry import Registry, registry

STAGE = "sink-clickhouse"
TOPICS = ("leads.changed", "leads.outcomes", DEAD)
_RECORDS = {"leads.changed": "lead_change", "leads.outcomes": "outcome"}
_INSERT_ROWS = 25_000  # most rows of one insert: a larger batch is split, to use both cores


@dataclass(frozen=True, slots=True)
class _Group:
    """Messages of one schema, their payloads, and the table they go to."""

    table: str
    head: bytes
    messages: list[Message]
    payloads: list[bytes]

    def part(self, start: int, end: int) -> _Group:
        """Return the messages from ``start`` to ``end`` as a group."""
        return _Group(self.table, self.head, self.messages[start:end], self.payloads[start:end])


@dataclass(frozen=True, slots=True)
class _Insert:
    """A group and its container file."""

    group: _Group
    container: bytes


@dataclass(frozen=True, slots=True)
class SortedBatch:
    """A batch sorted by schema, and the dead letters of what is none of our records."""

    inserts: list[_Insert]
    dead: list[Output]


class ClickHouseSink:
    """The processor of :data:`TOPICS`."""

    def __init__(self, server: ClickHouse, codec: Codec, schemas: Registry | None = None) -> None:
        self._server = server
        known = schemas or registry()
        self._dead_letter = codec.encoder("dead_letter")
        names = (*_RECORDS.values(), "dead_letter")
        forms = [form for form in known.all_versions() if form.name in names]
        self._forms = {MARKER + form.fingerprint: (form.name, container_header(form)) for form in forms}

    def prepare(self, messages: Sequence[Message]) -> SortedBatch:
        """Sort a batch by schema; nothing is decoded."""
        groups: dict[tuple[str, bytes], _Group | None] = {}
        dead: list[Output] = []
        for message in messages:
            topic, payload = message.topic(), message.value() or b""
            if topic == DEAD:
                payload = self._row(message)
            mark = payload[:HEADER]
            try:
                group = groups[topic, mark]
            except KeyError:
                group = groups[topic, mark] = self._group(topic, mark)
            if group is None:
                problem = Problem("", f"no {_RECORDS[topic]} in single-object encoding")
                dead.append(dead_letter(message, STAGE, Dead(Reason.UNKNOWN_SCHEMA, (problem,))))
            else:
                group.messages.append(message)
                group.payloads.append(payload)
        return SortedBatch([_packed(part) for group in groups.values() if group for part in _parts(group)], dead)

    def _group(self, topic: str, mark: bytes) -> _Group | None:
        """Return a group for payloads that begin with ``mark``; None where they do not belong on ``topic``."""
        name, head = self._forms.get(mark, ("", b""))
        return _Group(f"landing_{name}", head, [], []) if name == _RECORDS.get(topic, "dead_letter") else None

    async def apply(self, prepared: SortedBatch) -> Effects:
        """Insert every group.

        Raises:
            DependencyUnavailable: ClickHouse is unavailable.
            ClickHouseError: it rejects even an empty insert, so the records are not the cause.

        """
        refused = await asyncio.gather(*(self._insert(insert) for insert in prepared.inserts))
        dead = prepared.dead + [output for outputs in refused for output in outputs]
        return Effects(dead, len(dead))

    async def _insert(self, insert: _Insert) -> list[Output]:
        group = insert.group
        try:
            await self._server.insert(group.table, "Avro", insert.container, token(group.table, group.messages))
        except ClickHouseError as error:
            if len(group.messages) == 1:
                # If the server also rejects a container without records, the cause is not this record: this raises.
                await self._server.insert(group.table, "Avro", group.head)
                problem = Problem("", f"ClickHouse rejects it with code {error.code}")
                return [dead_letter(group.messages[0], STAGE, Dead(Reason.REJECTED, (problem,)), "ClickHouseError")]
            half = len(group.messages) // 2
            first, second = group.part(0, half), group.part(half, len(group.messages))
            return await self._insert(_packed(first)) + await self._insert(_packed(second))
        return []

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
        }
        return self._dead_letter(record)


def _parts(group: _Group) -> list[_Group]:
    count = len(group.messages)
    size = math.ceil(count / math.ceil(count / _INSERT_ROWS))
    return [group.part(start, start + size) for start in range(0, count, size)]


def _packed(group: _Group) -> _Insert:
    return _Insert(group, container(group.head, group.payloads))


def token(table: str, messages: Sequence[Message]) -> str:
    """Return a name that only this batch has, from the table, the partitions and their offsets (range and number)."""
    partitions = [message.partition() for message in messages]
    offsets = [message.offset() for message in messages]
    last = dict(zip(partitions, offsets, strict=True))
    first = dict(zip(reversed(partitions), reversed(offsets), strict=True))
    counts = Counter(partitions)
    ranges = [(partition, first[partition], last[partition], counts[partition]) for partition in sorted(counts)]
    return f"{table}-{blake2b(repr((messages[0].topic(), ranges)).encode(), digest_size=16).hexdigest()}"


def _number(texts: Mapping[str, str], name: str, otherwise: int, *, bits: int = 64) -> int:
    try:
        number = int(texts[name])
    except (KeyError, ValueError):
        return otherwise
    return number if -(1 << bits - 1) <= number < 1 << bits - 1 else otherwise
