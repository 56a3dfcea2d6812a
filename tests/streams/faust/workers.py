"""Real worker processes, and a broker seen by a client."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from infra.settings import child_environment


class Workers(AbstractContextManager["Workers"]):
    """Starts, kills and restarts processes of ``command``; kills all of them on exit."""

    def __init__(self, command: list[str], environment: Mapping[str, str], logs: Path) -> None:
        self._command = [sys.executable, *command]
        self._environment = child_environment(environment)
        self._log_folder = logs
        self.processes: list[subprocess.Popen[bytes]] = []
        self._started = 0

    def start(self) -> subprocess.Popen[bytes]:
        self._started += 1
        with (self._log_folder / f"worker-{self._started}.log").open("wb") as log:
            process = subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def kill_and_restart(self, index: int) -> None:
        process = self.processes.pop(index)
        process.kill()
        process.wait(30)
        self.start()

    def terminate(self) -> list[int]:
        for process in self.processes:
            process.terminate()
        codes = [process.wait(60) for process in self.processes]
        self.processes.clear()
        return codes

    def logs(self) -> str:
        return "\n".join(
            path.read_text(errors="replace")[-3000:] for path in sorted(self._log_folder.glob("worker-*.log"))
        )

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for process in self.processes:
            process.kill()
            process.wait(30)


class Broker:
    """A client of one broker."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._admin = AdminClient({"bootstrap.servers": bootstrap})

    def make(self, *topics: str, partitions: int) -> None:
        for future in self._admin.create_topics([NewTopic(name, partitions, 1) for name in topics]).values():
            future.result(30)

    def produce(self, topic: str, records: Iterable[tuple[bytes, bytes]]) -> None:
        # Without idempotence, a batch that is retried (the topic is new) could come after later batches.
        settings = {"enable.idempotence": True, "partitioner": "murmur2_random"}
        producer = Producer({"bootstrap.servers": self._bootstrap} | settings)
        for key, value in records:
            producer.produce(topic, value, key)
        assert producer.flush(60) == 0

    def in_transaction(self, topic: str, values: Iterable[bytes], *, end: str) -> Producer:
        """Produce ``values`` to partition 0 in a transaction; ``commit`` or ``abort`` it, or leave it ``open``."""
        producer = Producer({"bootstrap.servers": self._bootstrap, "transactional.id": f"test-{uuid.uuid4().hex}"})
        producer.init_transactions(30)
        producer.begin_transaction()
        for value in values:
            producer.produce(topic, value, b"key", 0)
        producer.flush(30)
        if end == "commit":
            producer.commit_transaction(30)
        elif end == "abort":
            producer.abort_transaction(30)
        return producer

    def delete_before(self, topic: str, offset: int) -> None:
        """Delete the records of partition 0 before ``offset``, as retention does."""
        self._admin.delete_records([TopicPartition(topic, 0, offset)])[TopicPartition(topic, 0)].result(30)

    def commit(self, group: str, topic: str, offset: int) -> None:
        """Commit ``offset`` of partition 0 for a group without members."""
        partitions = [TopicPartition(topic, 0, offset)]
        request = [ConsumerGroupTopicPartitions(group, partitions)]
        self._admin.alter_consumer_group_offsets(request)[group].result(30)

    def ends(self, topic: str) -> dict[int, int]:
        consumer = self._consumer()
        partitions = consumer.list_topics(topic, 10).topics[topic].partitions
        ends = {p: consumer.get_watermark_offsets(TopicPartition(topic, p), 10)[1] for p in partitions}
        consumer.close()
        return ends

    def committed(self, group: str, topic: str) -> dict[int, int]:
        partitions = [TopicPartition(topic, p) for p in self.ends(topic)]
        request = ConsumerGroupTopicPartitions(group, partitions)
        offsets = self._admin.list_consumer_group_offsets([request])[group].result(30)
        return {p.partition: max(p.offset, 0) for p in offsets.topic_partitions}

    def follow(self, topic: str, enough: Callable[[list[Message]], bool], within_s: float = 120) -> list[Message]:
        """Read ``topic`` from its start until ``enough`` is true, at most ``within_s`` seconds; return the messages."""
        consumer = self._consumer()
        consumer.assign([TopicPartition(topic, p, 0) for p in self.ends(topic)])
        read: list[Message] = []
        deadline = time.monotonic() + within_s
        while not enough(read) and time.monotonic() < deadline:
            read += [m for m in consumer.consume(5000, 0.2) if m.error() is None]
        consumer.close()
        return read

    def _consumer(self) -> Consumer:
        settings = {"bootstrap.servers": self._bootstrap, "group.id": "tests-outside", "enable.auto.commit": False}
        return Consumer(settings | {"auto.offset.reset": "earliest"})


def wait_until(condition: Callable[[], bool], within_s: float = 60) -> bool:
    """Poll ``condition`` for at most ``within_s`` seconds; return whether it became true."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return False
