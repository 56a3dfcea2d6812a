"""One hop (decode, validate, forward) compared with plain librdkafka, quixstreams and a plain Faust agent."""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path

from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from bench.events import fill, payloads
from bench.result import Result, compare
from infra.kafka import client
from infra.kafka_settings import KafkaSettings
from infra.settings import child_environment

_COUNT = 100_000
_SLOW = 15_000  # Faust gets fewer events: only its rate is compared
ROOT = Path(__file__).parents[1]


def measure(settings: KafkaSettings, home: Path, runs: int) -> list[Result]:
    """Return the comparisons of the hop."""
    admin = client.admin(settings, "bench")
    source = _topic(admin)
    fill(settings, source, payloads(_COUNT, "bench"))
    quix = _quix_python(home)

    def rate(name: str, count: int, python: str = sys.executable) -> float:
        target = _topic(admin)
        command = [
            python,
            str(ROOT / "bench" / "hop_worker.py"),
            name,
            settings.kafka_bootstrap,
            source,
            target,
            str(count),
        ]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            cwd=ROOT,
            env=child_environment({"PYTHONPATH": str(ROOT)}, inherit=False),
        )
        if done.returncode:
            raise RuntimeError(f"{name}: {done.stderr[-1500:]}")
        if (there := _records(settings, target)) < count:
            raise RuntimeError(f"{name}: only {there} of {count} records arrived")
        admin.delete_topics([target])
        return count / float(done.stdout.split()[-1])

    def ours() -> float:
        return rate("ours", _COUNT)

    return [
        compare("hop / raw consume→produce, no decoding", ours, lambda: rate("raw", _COUNT), wanted=0.05, runs=runs),
        compare("hop / quixstreams", ours, lambda: rate("quix", _COUNT, quix), wanted=1.5, runs=runs),
        compare("hop / plain Faust agent", ours, lambda: rate("faust", _SLOW), wanted=10, runs=runs),
    ]


def _topic(admin: AdminClient) -> str:
    name = f"bench.{uuid.uuid4().hex[:12]}"
    for future in admin.create_topics([NewTopic(name, 4, 1)]).values():
        future.result()
    return name


def _records(settings: KafkaSettings, topic: str) -> int:
    consumer = client.reader(settings, "bench")
    ends = [consumer.get_watermark_offsets(TopicPartition(topic, p), 10)[1] for p in range(4)]
    consumer.close()
    return sum(ends)


def _quix_python(home: Path) -> str:
    """Return the Python of a separate environment for quixstreams, which needs an older confluent-kafka."""
    python = home / "quix" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(home / "quix")], check=True)
        wanted = ["quixstreams==3.25.0", "fastavro", "orjson", "phonenumbers", "pydantic"]
        subprocess.run([str(python), "-m", "pip", "install", "-q", *wanted], check=True)
    return str(python)
