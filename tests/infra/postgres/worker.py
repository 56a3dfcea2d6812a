"""A worker process that a test kills: ``python -m tests.infra.postgres.worker DSN TABLE``."""

from __future__ import annotations

import asyncio
import signal
import sys

from infra.postgres.leased_rows import Done, Lease
from infra.postgres.pool import connect
from infra.runtime import Stop
from tests.infra.postgres.jobs import Job, JobsTable, Outcomes, all_done, engine


async def main(dsn: str, name: str) -> None:
    """Record the start of each job and finish it after some milliseconds."""
    stop = Stop()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.request)
    async with await connect(dsn, size=8, application="tests") as pool:
        table = JobsTable(pool, name, lease_s=5)

        async def handle(lease: Lease[Job]) -> list[tuple[Job, Done]]:
            for row in lease.rows:
                await pool.execute(f"INSERT INTO {name}_begun VALUES ($1)", int(row.key))  # noqa: S608
            await asyncio.sleep(0.005)
            return await all_done(lease)

        await engine(table, handle, Outcomes().emit, in_flight=4, ahead=12, poll_s=0.1).run(stop)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
