"""Logins and TLS with a real broker, for the clients of librdkafka and of Faust."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Message
from confluent_kafka.admin import NewTopic

from infra.errors import ClientFailed, DependencyUnavailable
from infra.kafka import client
from infra.kafka.producer import Deliverer, Output
from infra.settings import Settings, child_environment
from local.ports import free_port
from operations import broker_topics
from operations.lag import LagReader
from tests.conftest import eventually
from tests.infra.kafka.secured import PASSWORD, Secured, secured_broker
from tests.streams.faust.workers import Broker, Workers

pytestmark = pytest.mark.integration
WAYS = [("PLAIN", False), ("SCRAM-SHA-512", False), ("OAUTHBEARER", False), ("PLAIN", True)]
WRONG = "wrong-4712"
AGENT = str(Path(__file__).parents[2] / "streams" / "faust" / "agent_worker.py")
ALONE = """
import asyncio
from infra.kafka.batch_limits import BatchLimits
from infra.kafka.batches import run_batches
from infra.kafka.producer import Deliverer
from infra.runtime import run

async def main(settings, stop):
    options = {"group": "g", "topics": ["t"], "limits": BatchLimits(10, 1 << 20, 10), "stop": stop, "processor": None}
    deliverer = Deliverer(settings, "worker", on_fatal=stop.fail)
    await run_batches(settings, deliverer=deliverer, **options)
    await deliverer.close()

run(main, "worker")
"""


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    with secured_broker(tmp_path_factory.mktemp("secured")) as found:
        yield found


@pytest.mark.parametrize(("mechanism", "tls"), WAYS)
async def test_every_client_works_through_a_login(broker: Secured, unique: str, mechanism: str, *, tls: bool) -> None:
    settings = Settings.load(broker.environment(mechanism, tls=tls))
    admin = client.admin(settings, "test")
    await asyncio.to_thread(admin.create_topics([NewTopic(unique, 1, 1)])[unique].result, 30)
    failures: list[Exception] = []
    deliverer = Deliverer(settings, "test", on_fatal=failures.append)
    await deliverer.deliver([Output(unique, None, value) for value in (b"a", b"b", b"c")])
    await deliverer.close()

    member = client.member(settings, unique, on_fatal=failures.append)
    member.subscribe([unique])
    found: list[Message] = []
    while len(found) < 3:
        found += await asyncio.to_thread(member.consume, 3, 10)
    assert [message.value() for message in found] == [b"a", b"b", b"c"]
    await asyncio.to_thread(member.commit, message=found[1], asynchronous=False)
    await asyncio.to_thread(member.close)

    lag = LagReader(settings, {unique: [unique]})
    assert [row.lag for row in await asyncio.to_thread(lag.read)] == [1]
    lag.close()
    assert failures == []


@pytest.mark.parametrize(("mechanism", "tls"), WAYS)
async def test_faust_works_through_the_same_login(
    broker: Secured, tmp_path: Path, mechanism: str, *, tls: bool
) -> None:
    name = f"test-{uuid.uuid4().hex[:8]}"
    source, out = f"{name}.in", f"{name}.out"
    outside = Broker(broker.plain)
    outside.make(source, out, partitions=2)
    outside.produce(source, [(b"key-%d" % n, b"%d" % n) for n in range(40)])
    environment = {"LEADSTREAM_HOME": str(tmp_path)} | broker.environment(mechanism, tls=tls)
    with Workers([AGENT, name, source, out], environment, tmp_path) as workers:
        workers.start()
        found = await asyncio.to_thread(outside.follow, out, lambda read: len(read) >= 40)
        assert sorted(int(message.value() or b"-1") for message in found) == list(range(40)), workers.logs()
        assert workers.terminate() == [0], workers.logs()


@pytest.mark.parametrize(("mechanism", "tls"), WAYS)
def test_a_wrong_password_is_reported_by_the_command_line(broker: Secured, mechanism: str, *, tls: bool) -> None:
    settings = Settings.load(broker.environment(mechanism, tls=tls, password=WRONG))
    with pytest.raises(DependencyUnavailable, match=r"(?i)authentication|oauth") as caught:
        broker_topics.diff(settings)
    assert WRONG not in str(caught.value)


@pytest.mark.parametrize("program", ["worker", "api", "faust"])
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
def test_a_wrong_password_ends_a_process_with_one_critical_log_line(
    broker: Secured, tmp_path: Path, program: str, mechanism: str
) -> None:
    environment = {"LEADSTREAM_HOME": str(tmp_path), "LEADSTREAM_API_PORT": str(free_port())}
    command = {"worker": ["-c", ALONE], "api": ["-m", "api"], "faust": [AGENT, "g", "t", "o"]}[program]
    done = subprocess.run(
        [sys.executable, *command],
        env=child_environment(environment | broker.environment(mechanism, password=WRONG), inherit=False),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    fatal = [line for line in map(json.loads, done.stdout.splitlines()) if line["level"] == "critical"]
    assert [bool(re.search("failed permanently: .*(?i:auth)", line["event"])) for line in fatal] == [True]
    assert WRONG not in done.stdout + done.stderr
    assert PASSWORD not in done.stdout + done.stderr


async def test_a_broker_whose_certificate_is_not_trusted_is_refused(broker: Secured) -> None:
    environment = broker.environment("PLAIN", tls=True)
    del environment["LEADSTREAM_KAFKA_SSL_CA"]
    failures: list[Exception] = []
    deliverer = Deliverer(Settings.load(environment), "test", timeout_s=1, on_fatal=failures.append)
    await eventually(lambda: bool(failures))
    await deliverer.close(0)
    assert isinstance(failures[0], ClientFailed)
    assert "certificate" in str(failures[0])
