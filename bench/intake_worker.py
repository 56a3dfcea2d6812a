"""One intake worker of the benchmark: ``python -m bench.intake_worker DSN FILE BATCH``.

It reads its events from FILE, prints ``ready``, starts when it reads a line from standard input, and prints ``done``.
It runs the complete stage on records in memory: decode, validate, decide and write in one transaction per batch, and
encode the outputs. As in the batch loop, prepare, apply and encoding overlap.
"""

from __future__ import annotations

import asyncio
import pickle
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import asyncpg
import uvloop
from confluent_kafka import Message

from infra.kafka.processor import Outputs
from infra.postgres.pool import connect
from infra.runtime import collect_garbage_rarely
from schemas.codec import Codec
from streams.intake.event import EventBatch
from streams.intake.pipeline import Intake
from streams.intake.route import Router
from streams.intake.store import Store


def batches_of(events: Sequence[tuple[bytes, bytes]], size: int) -> list[list[Message]]:
    """Return (key, value) pairs as batches of records, as the batch loop passes them."""
    at = (1, time.time_ns() // 1_000_000)
    found = [Message("leads.received", 0, n, key, value, None, None, at) for n, (key, value) in enumerate(events)]
    return [found[start : start + size] for start in range(0, len(found), size)]


async def stage(dsn: str, clock: Callable[[], int]) -> tuple[asyncpg.Pool, Intake]:
    """Return a pool with one connection, and the stage that uses it."""
    pool = await connect(dsn, size=1, application="bench")
    await pool.execute("INSERT INTO signal_types VALUES ('bench', 'form_submitted') ON CONFLICT DO NOTHING")
    router = Router(Codec(), ["leads.crm-hubspot"])
    return pool, Intake(Store(pool), Codec(), router, max_event_bytes=262_144, max_ahead_s=86_400, now=clock)


async def _main(dsn: str, events: Sequence[tuple[bytes, bytes]], size: int) -> None:
    batches = batches_of(events, size)
    pool, intake = await stage(dsn, lambda: time.time_ns() // 1000)
    prepared: asyncio.Queue[EventBatch | None] = asyncio.Queue(1)
    applied: asyncio.Queue[Outputs | None] = asyncio.Queue(1)

    async def prepare() -> None:
        for messages in batches:
            await prepared.put(await asyncio.to_thread(intake.prepare, messages))
        await prepared.put(None)

    async def apply() -> None:
        while (batch := await prepared.get()) is not None:
            async for outputs in intake.apply(batch):
                await applied.put(outputs)
        await applied.put(None)

    async def encode() -> None:
        while (outputs := await applied.get()) is not None:
            if callable(outputs):
                outputs()

    collect_garbage_rarely()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.readline)
    await asyncio.gather(prepare(), apply(), encode())
    sys.stdout.write("done\n")
    sys.stdout.flush()
    await pool.close()


if __name__ == "__main__":
    found = pickle.loads(Path(sys.argv[2]).read_bytes())  # noqa: S301 - our own file
    uvloop.run(_main(sys.argv[1], found, int(sys.argv[3])))
