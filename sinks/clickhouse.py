"""The ClickHouse sink: what intake and the others told, for analysts. It never decodes.

A payload's datum is what an Avro container file holds, so the payloads of one schema are joined under one header and
inserted as they are: one insert a table a batch, and of a large batch two side by side, for an insert works on one
core for the most part. Dead letters become rows from their headers alone; their bytes, which
may be personal data, stay on the topic.

Guarantee: at least once, and once for readers. The same batch again carries the same deduplication token and is not
inserted again. After a crash the batches may be cut differently: then the stores' identities (see the migrations) make
the views under the public names show each row once.

A payload that is not a record of ours is a dead letter; where ClickHouse refuses a container, it is halved until the
bad record is alone. Where ClickHouse refuses everything (no such table, not allowed), the sink stops instead.
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
_SIDE_BY_SIDE = 25_000  # rows of an insert, at most: a larger batch is worth more parts, and work on both cores


@dataclass(frozen=True, slots=True)
class _Group:
    """Messages of one schema, their payloads, and where they go."""

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
class Prepared:
    """A batch by schema, and what is none of ours."""

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

    def prepare(self, messages: Sequence[Message]) -> Prepared:
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
        return Prepared([_packed(part) for group in groups.values() if group for part in _parts(group)], dead)

    def _group(self, topic: str, mark: bytes) -> _Group | None:
        """Return a group for what begins with ``mark``, or nothing where that does not belong on ``topic``."""
        name, head = self._forms.get(mark, ("", b""))
        return _Group(f"landing_{name}", head, [], []) if name == _RECORDS.get(topic, "dead_letter") else None

    async def apply(self, prepared: Prepared) -> Effects:
        """Insert every group.

        Raises:
            DependencyUnavailable: ClickHouse cannot take it now.
            ClickHouseError: it refuses whatever we send, so that nothing is wrong with the records.

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
                # A server that does not take even a container without records refuses us, not this record.
                await self._server.insert(group.table, "Avro", group.head)
                problem = Problem("", f"ClickHouse refuses it with code {error.code}")
                return [dead_letter(group.messages[0], STAGE, Dead(Reason.REJECTED, (problem,)), "ClickHouseError")]
            half = len(group.messages) // 2
            first, second = group.part(0, half), group.part(half, len(group.messages))
            return await self._insert(_packed(first)) + await self._insert(_packed(second))
        return []

    def _row(self, message: Message) -> bytes:
        headers = {
            name.removeprefix(PREFIX): value for name, value in message.headers() or [] if name.startswith(PREFIX)
        }
        said = {name: (value or b"").decode("utf-8", "replace") for name, value in headers.items()}
        record = {
            "at": _number(said, "at", message.timestamp()[1] * 1000),
            "stage": said.get("stage", ""),
            "reason": said.get("reason", ""),
            "detail": said.get("detail", ""),
            "topic": said.get("topic", ""),
            "partition": _number(said, "partition", -1, bits=32),
            "offset": _number(said, "offset", -1),
            "dead_partition": message.partition(),
            "dead_offset": message.offset(),
            "size": len(message.value() or b""),
        }
        return self._dead_letter(record)


def _parts(group: _Group) -> list[_Group]:
    count = len(group.messages)
    size = math.ceil(count / math.ceil(count / _SIDE_BY_SIDE))
    return [group.part(start, start + size) for start in range(0, count, size)]


def _packed(group: _Group) -> _Insert:
    return _Insert(group, container(group.head, group.payloads))


def token(table: str, messages: Sequence[Message]) -> str:
    """Return what names this very batch: its table and the range and number of offsets of each partition of a topic."""
    partitions = [message.partition() for message in messages]
    offsets = [message.offset() for message in messages]
    last = dict(zip(partitions, offsets, strict=True))
    first = dict(zip(reversed(partitions), reversed(offsets), strict=True))
    counts = Counter(partitions)
    ranges = [(partition, first[partition], last[partition], counts[partition]) for partition in sorted(counts)]
    return f"{table}-{blake2b(repr((messages[0].topic(), ranges)).encode(), digest_size=16).hexdigest()}"


def _number(said: Mapping[str, str], name: str, otherwise: int, *, bits: int = 64) -> int:
    try:
        number = int(said[name])
    except (KeyError, ValueError):
        return otherwise
    return number if -(1 << bits - 1) <= number < 1 << bits - 1 else otherwise
