"""The ClickHouse sink compared with an ``INSERT … SELECT`` of the same rows inside the server, with the same views.

``ours``: the sink inserts records that are in memory; as in the batch loop, a batch is prepared while the previous one
is inserted. ``reference``: the server inserts the same batches from a table.
"""

from __future__ import annotations

import asyncio
import time
from itertools import count as counter

import uvloop
from confluent_kafka import Message

from bench.result import Result, compare
from infra.clickhouse.client import ClickHouse
from schemas.codec import Codec
from sinks.clickhouse import ClickHouseSink, SortedBatch

_ROWS = 200_000
_BATCH = 50_000


def measure(url: str, runs: int) -> list[Result]:
    """Return the comparison, in rows per second."""
    offsets = counter()
    payloads = _payloads()

    async def ours() -> float:
        async with ClickHouse(url) as server:
            await _clear(server)
            sink = ClickHouseSink(server, Codec())
            batches = [
                _messages(next(offsets) * _BATCH, payloads[start : start + _BATCH]) for start in range(0, _ROWS, _BATCH)
            ]
            inserting: asyncio.Future[None] | None = None
            began = time.perf_counter()
            for batch in batches:
                prepared = await asyncio.to_thread(sink.prepare, batch)
                if inserting is not None:
                    await inserting
                inserting = asyncio.ensure_future(_apply(sink, prepared))
                await asyncio.sleep(0)  # starts the insert
            if inserting is not None:
                await inserting
            return _ROWS / (time.perf_counter() - began)

    async def reference() -> float:
        async with ClickHouse(url) as server:
            await _store_reference_rows(server, payloads)
            await _clear(server)
            began = time.perf_counter()
            for start in range(0, _ROWS, _BATCH):
                await server.execute(
                    "INSERT INTO landing_lead_change SELECT * FROM bench_lead_change"
                    " WHERE offset >= {first:Int64} AND offset < {end:Int64}",
                    first=start,
                    end=start + _BATCH,
                )
            return _ROWS / (time.perf_counter() - began)

    return [
        compare(
            "ClickHouse sink / server-side INSERT … SELECT",
            lambda: uvloop.run(ours()),
            lambda: uvloop.run(reference()),
            wanted=0.7,
            runs=runs,
            unit="rows/s",
        )
    ]


async def _apply(sink: ClickHouseSink, prepared: SortedBatch) -> None:
    async for _ in sink.apply(prepared):
        pass


def _messages(first: int, payloads: list[bytes]) -> list[Message]:
    """Return the records, with unused offsets: ClickHouse would deduplicate repeated ones."""
    return [Message("leads.changed", 0, first + n, None, value, None, None, (1, 1)) for n, value in enumerate(payloads)]


async def _store_reference_rows(server: ClickHouse, payloads: list[bytes]) -> None:
    """Store the rows in a table with the columns of the landing table, if it does not exist."""
    if await server.query("SELECT 1 AS x FROM system.tables WHERE name = 'bench_lead_change'"):
        return
    from schemas.codec import container, container_header  # noqa: PLC0415
    from schemas.registry import registry  # noqa: PLC0415

    await server.execute("CREATE TABLE bench_lead_change AS landing_lead_change ENGINE = MergeTree ORDER BY offset")
    head = container_header(registry().records["lead_change"])
    for start in range(0, _ROWS, _BATCH):
        await server.insert("bench_lead_change", "Avro", container(head, payloads[start : start + _BATCH]))


async def _clear(server: ClickHouse) -> None:
    for table in ("lead_events_store", "leads_store"):
        await server.execute(f"TRUNCATE TABLE {table}")


def _payloads() -> list[bytes]:
    encode = Codec().encoder("lead_change")
    now = time.time_ns() // 1000
    lead = (
        '{{"lead_id":"{0}","tenant":"bench","version":{1},"merged_into":"","created_at":{2},"updated_at":{2},'
        '"email":"ada.{1}@example.com","first_name":"Ada","last_name":"Stone","company":"Stone Works",'
        '"country":"GB","status":"new","score":42.0,"first_touch_at":{2},"first_touch_source":"web",'
        '"last_touch_at":{2},"last_touch_source":"web","custom":{{"plan":"pro"}}}}'
    )
    rows: list[bytes] = []
    for n in range(_ROWS):
        lead_id = f"01a20a30-2fe9-7076-bb39-{n % 12_500:012d}"
        record = {
            "tenant": "bench",
            "event_id": f"event-{n:08d}",
            "event_type": "page_viewed",
            "source": "web",
            "own": False,
            "lead_id": lead_id,
            "version": n // 12_500 + 1,
            "occurred_at": now + n,
            "received_at": now + n,
            "decided_at": now,
            "topic": "leads.received",
            "partition": n % 8,
            "offset": n,
            "properties": '{"url":"https://www.example.com/pricing","title":"Example","identifiers":{"email":"a"}}',
            "changes": "{}",
            "merged": [],
            "lead": lead.format(lead_id, n // 12_500 + 1, now),
        }
        rows.append(encode(record))
    return rows
