"""The Kafka brokers of a state folder: how many there are, their names, folders, ports and properties.

A state folder has one broker, or a cluster of three, each of which is a controller, too. A cluster keeps three replicas
of every topic and acknowledges a record when two brokers have it: it survives the loss of one broker with its disk.
The number is fixed by the first start and kept in ``kafka.json``.
"""

from __future__ import annotations

import json
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from local.ports import HOST
from local.process_spec import StackError
from local.state import read_json, write_atomically

SIZES = (1, 3)  # two brokers cannot lose one: neither has the majority of the controllers then
_FILE = "kafka.json"
_NAMES = ("kafka", "kafka-2", "kafka-3")

_PROPERTIES = """\
process.roles=broker,controller
node.id={node}
controller.quorum.voters={voters}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs={name}
auto.create.topics.enable=false
num.network.threads=2
num.io.threads=4
num.partitions=4
message.max.bytes=4194304
replica.fetch.max.bytes=4194304
offsets.topic.num.partitions=4
offsets.topic.replication.factor={replicas}
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor={replicas}
transaction.state.log.min.isr={in_sync}
share.coordinator.state.topic.replication.factor={replicas}
share.coordinator.state.topic.min.isr={in_sync}
default.replication.factor={replicas}
min.insync.replicas={in_sync}
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=3000
log.cleaner.threads=1
log.cleaner.dedupe.buffer.size=8388608
controlled.shutdown.max.retries=1
"""
# A killed broker registers again only after its session has ended.
_OF_A_CLUSTER = "broker.session.timeout.ms=6000\nbroker.heartbeat.interval.ms=1000\n"
_FLUSH = "log.flush.interval.messages=1\n"


@dataclass(frozen=True, slots=True)
class Cluster:
    """The brokers of the state folder ``home``; ``ports`` has a port for each name, and one for its controller.

    ``flush``: a record is written to the disk before it is acknowledged.
    """

    home: Path
    names: tuple[str, ...]
    ports: Mapping[str, int]
    cluster_id: str
    flush: bool = False

    @property
    def bootstrap(self) -> str:
        """The addresses of all brokers."""
        return ",".join(f"{HOST}:{self.ports[name]}" for name in self.names)

    def node(self, name: str) -> int:
        """Return the node id of a broker."""
        return self.names.index(name) + 1

    def properties(self, name: str) -> str:
        """Return the properties file of a broker; paths in it are relative to ``home``."""
        voters = ",".join(f"{self.node(each)}@{HOST}:{self.ports[controller(each)]}" for each in self.names)
        replicas = len(self.names)
        text = _PROPERTIES.format(
            node=self.node(name),
            voters=voters,
            port=self.ports[name],
            controller=self.ports[controller(name)],
            name=name,
            replicas=replicas,
            in_sync=replicas // 2 + 1,
        )
        return text + _OF_A_CLUSTER * (replicas > 1) + _FLUSH * self.flush


def controller(name: str) -> str:
    """Return the name of the port of a broker's controller."""
    return f"{name}-controller"


def names_of(count: int) -> tuple[str, ...]:
    """Return the names of ``count`` brokers."""
    return _NAMES[:count]


def count_in(home: Path) -> int:
    """Return the number of brokers that the state folder was created with; 0 if it has no data of Kafka."""
    if not any((home / name / "meta.properties").exists() for name in _NAMES):
        return 0
    return int(read_json(home / _FILE).get("brokers", 1))


def choose_count(home: Path, wanted: int | None) -> int:
    """Return the number of brokers to start; ``wanted`` is None for that of the folder, or one in a new folder.

    Raises:
        StackError: ``wanted`` is not possible, or the folder was created with another number.

    """
    existing = count_in(home)
    if wanted is not None and wanted not in SIZES:
        raise StackError(f"--brokers {wanted}: there can be 1 broker or 3")
    if existing and wanted is not None and wanted != existing:
        was = f"the state folder {home} was created with {existing} Kafka broker{'s' * (existing > 1)}"
        raise StackError(
            f"{was} and cannot run with {wanted}: start it with --brokers {existing}, set LEADSTREAM_HOME to a new "
            "folder, or delete this one with all its data"
        )
    return existing or wanted or 1


def cluster_id(home: Path, count: int) -> str:
    """Return the id that the brokers of the folder share; write it with their number on the first start."""
    known = read_json(home / _FILE)
    if known.get("brokers") == count:
        return str(known["cluster_id"])
    new = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    if not count_in(home):  # a folder of an earlier version has its own id, in meta.properties, and needs no file
        write_atomically(home / _FILE, json.dumps({"brokers": count, "cluster_id": new}))
    return new
