"""Three brokers, lost one at a time under load, one of them with its disk: the pipeline goes on and nothing is lost."""

from __future__ import annotations

import asyncio
import itertools
import random
import shutil
from pathlib import Path

import asyncpg
import pytest
from confluent_kafka.admin import AdminClient

from infra.clickhouse.client import ClickHouse
from infra.kafka.client import admin, metadata
from infra.postgres.pool import connect
from infra.settings import Settings
from local.attached import AttachedStack
from local.control import send_command
from tests.chaos import books
from tests.chaos.load import TOPIC, Load, generated
from tests.chaos.quiet import wait_until_idle
from tests.chaos.victims import Victims
from tests.conftest import eventually

_BROKERS = ("kafka", "kafka-2", "kafka-3")
_NOT_NEEDED = ("enrichment", "campaigns", "crm-hubspot", "messages-email")
_RATE = 200  # events a second
_GOES_ON = 400  # events that are accepted while a broker is down
_IN_SYNC_S = 120


def in_sync(client: AdminClient) -> bool:
    """Return whether every partition of every topic has three replicas in sync."""
    topics = metadata(client, timeout_s=10).topics.values()
    return all(len(partition.isrs) == len(_BROKERS) for topic in topics for partition in topic.partitions.values())


class Cluster:
    """A stack with three brokers: what the test does to it and sees of it."""

    def __init__(self, home: Path, control: str, pool: asyncpg.Pool, client: AdminClient) -> None:
        self._home = home
        self._control = control
        self._pool = pool
        self._client = client
        self._victims = Victims(home)

    async def accepted(self) -> int:
        found: int = await self._pool.fetchval("SELECT count(*) FROM lead_history")
        return found

    async def lose(self, name: str, *, with_its_disk: bool) -> None:
        """Kill a broker, see intake go on without it, and start it again; wait until it has everything."""
        await eventually(lambda: in_sync(self._client), _IN_SYNC_S)
        assert self._victims.kill(name)
        await asyncio.to_thread(send_command, self._control, "stop", name)  # so that it is not restarted yet
        before = await self.accepted()

        async def goes_on() -> bool:
            return await self.accepted() >= before + _GOES_ON

        await eventually(goes_on, _IN_SYNC_S)
        assert name not in self._victims.pids()
        if with_its_disk:
            await asyncio.to_thread(shutil.rmtree, self._home / name)
        await asyncio.to_thread(send_command, self._control, "start", name)
        await self._victims.recovered(_IN_SYNC_S)
        await eventually(lambda: in_sync(self._client), _IN_SYNC_S)


@pytest.mark.chaos
@pytest.mark.integration
@pytest.mark.timeout(1800)
async def test_brokers_are_lost_one_at_a_time(
    tmp_path: Path, unique: str, rng: random.Random, request: pytest.FixtureRequest
) -> None:
    if request.config.getoption("--stack") == "containers":
        pytest.skip("kills the brokers of the embedded stack")
    rounds = 4 if request.config.getoption("--chaos") == "full" else 1
    home = tmp_path / "stack"
    without = itertools.chain(*(("--without", name) for name in _NOT_NEEDED))
    with AttachedStack(home, "--brokers", "3", *without) as running:
        state, settings = running.state, Settings.load({"LEADSTREAM_HOME": str(home)})
        load = Load(settings, state["api"]["url"])
        pool = await connect(settings.database_url, size=2, application="chaos")
        done = asyncio.Event()
        try:
            records = itertools.takewhile(lambda _: not done.is_set(), generated(unique, 1_000_000, rng))
            sending = asyncio.create_task(load.send(records, _RATE))
            cluster = Cluster(home, state["control"], pool, admin(settings, "chaos"))
            for _ in range(rounds):
                names = rng.sample(_BROKERS, len(_BROKERS))
                for name in names:
                    await cluster.lose(name, with_its_disk=name == names[1])
            done.set()
            await sending
            async with ClickHouse(settings.clickhouse_url) as server:
                assert await wait_until_idle(settings, pool, ignored=_NOT_NEEDED, stalled_s=60) == ""
                topic = await asyncio.to_thread(books.read_topic, settings, TOPIC)
                suppressed = await asyncio.to_thread(books.suppressed_events, settings)
                wrong = [
                    *books.acknowledged(load.ledger, topic),
                    *await books.one_outcome(topic, server, unique),
                    *await books.accepted_once(load.ledger, pool, unique, suppressed),
                    *await books.versions(pool, unique),
                    *await books.clickhouse_equals_postgres(pool, server, unique),
                ]
        finally:
            await load.close()
            await pool.close()
    assert wrong == []
    assert len(load.ledger.events) > _GOES_ON * len(_BROKERS) * rounds
