"""A minimal worker on the Faust adapter: ``python agent_worker.py GROUP TOPIC OUT``.

It copies each record to OUT after 5 to 45 ms, and one in 200 after half a second, so that records do not finish in the
order of their offsets.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Sequence

from infra.kafka.producer import Deliverer, Output
from infra.runtime import Stop, run
from infra.settings import Settings
from streams.faust.agent import run_agent
from streams.faust.ordered import Record

GROUP, TOPIC, OUT = sys.argv[1:4]


async def handle(record: Record) -> Sequence[Output]:
    await asyncio.sleep(0.5 if random.random() < 0.005 else random.uniform(0.005, 0.045))
    return [Output(OUT, record.key(), record.value())]


async def main(settings: Settings, stop: Stop) -> None:
    deliverer = Deliverer(settings, GROUP)
    try:
        await run_agent(settings, stop, group=GROUP, topic=TOPIC, handler=handle, deliverer=deliverer)
    finally:
        await deliverer.close()


run(main, GROUP)
