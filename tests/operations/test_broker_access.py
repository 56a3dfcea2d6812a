"""The users of a broker with an authorizer: what each may do, and nothing else."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator

import pytest
from confluent_kafka import KafkaException, Message, Producer

from infra.errors import DependencyUnavailable
from infra.kafka.client import client_config
from infra.kafka.topics import TopicsError, load_topics
from infra.kafka_settings import KafkaSettings
from infra.settings import Settings
from local.brokers import Cluster
from local.kafka import kafka
from local.ports import free_port
from operations import broker_access, broker_topics
from operations.lag import LagReader
from tests.infra.kafka.secured import add_listeners, ready

pytestmark = [pytest.mark.integration, pytest.mark.timeout(200)]
PASSWORD = "right-4711"
# As in docker-compose.yml: a listener without a login on loopback only, for the broker and for its administrator.
AUTHORIZER = (
    "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "super.users=User:ANONYMOUS",
    "allow.everyone.if.no.acl.found=false",
)


@pytest.fixture(scope="module")
def brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Return the address for the administrator and the one with a login."""
    home = tmp_path_factory.mktemp("secured")
    plain, controller, sasl, sasl_ssl = (free_port() for _ in range(4))
    ports = {"kafka": plain, "kafka-controller": controller}
    part = kafka(Cluster(home, ("kafka",), ports, "leadstream-test-cluste"), "kafka")
    add_listeners(home, plain, sasl, sasl_ssl)
    file = home / "kafka.properties"
    lines = [line for line in file.read_text("utf-8").splitlines() if "SSL://" not in line and "ssl." not in line]
    listeners = f"PLAINTEXT://127.0.0.1:{plain},SASL_PLAINTEXT://127.0.0.1:{sasl}"
    text = "\n".join(
        [
            *lines,
            f"listeners={listeners},CONTROLLER://127.0.0.1:{controller}",
            f"advertised.listeners={listeners}",
            *AUTHORIZER,
            "",
        ]
    )
    file.write_text(text, "utf-8")
    with (home / "kafka.log").open("wb") as log:
        process = subprocess.Popen(part.command, stdout=log, stderr=log, cwd=part.folder)
        try:
            asyncio.run(ready(part))
            yield f"127.0.0.1:{plain}", f"127.0.0.1:{sasl}"
        finally:
            process.kill()
            process.wait(30)


def login(address: str, user: str, password: str) -> Settings:
    names = {"BOOTSTRAP": address, "SECURITY_PROTOCOL": "SASL_PLAINTEXT", "SASL_MECHANISM": "SCRAM-SHA-512"}
    names |= {"SASL_USERNAME": user, "SASL_PASSWORD": password}
    return Settings.load({f"LEADSTREAM_KAFKA_{name}": value for name, value in names.items()})


def error_of(settings: KafkaSettings, topic: str) -> str:
    """Return the error of producing a record to ``topic``, or ""."""
    done: list[str] = []

    def delivered(error: object, _: Message) -> None:
        done.append("" if error is None else error.name())  # type: ignore[attr-defined]

    producer = Producer(client_config(settings, "test") | {"message.timeout.ms": 8000, "enable.idempotence": True})
    try:
        producer.produce(topic, b"x", on_delivery=delivered)
        producer.flush(12)
    except KafkaException as error:
        return str(error.args[0].name())
    return done[0] if done else "no answer"


def test_each_user_may_do_its_work_and_nothing_else(brokers: tuple[str, str]) -> None:
    local, outside = brokers
    administrator = KafkaSettings(kafka_bootstrap=local)
    for _ in range(2):  # a repeated call changes nothing
        broker_access.secure(administrator, {"pipeline": PASSWORD, "schema-registry": "another-1"})
    pipeline = login(outside, "pipeline", PASSWORD)
    broker_topics.apply(pipeline, load_topics(tenants=["acme", "other"]))
    assert not broker_topics.diff(pipeline, load_topics(tenants=["acme", "other"]))
    reader = LagReader(pipeline, {"intake": ["leads.received"]})
    assert {row.topic for row in reader.read()} == {"leads.received", "leads.received.acme", "leads.received.other"}
    reader.close()
    assert error_of(pipeline, "leads.changed") == ""

    user, password = broker_access.grant(administrator, "acme")
    tenant = login(outside, user, password)
    assert error_of(tenant, "leads.received.acme") == ""
    for topic in ("leads.received", "leads.received.other", "leads.received.acme2", "leads.changed", "leads.dead"):
        assert "AUTHORIZATION" in error_of(tenant, topic), topic
    with pytest.raises(TopicsError, match="user tenant-other: not authorized"):
        broker_access.grant(tenant, "other")
    assert "leads.received" not in {d.topic for d in broker_topics.diff(tenant) if d.what != "missing"}

    renewed = broker_access.grant(administrator, "acme")
    assert renewed[0] == user
    assert error_of(login(outside, *renewed), "leads.received.acme") == ""
    with pytest.raises(DependencyUnavailable):
        broker_topics.diff(login(outside, user, password))
    with pytest.raises(DependencyUnavailable):
        broker_topics.diff(KafkaSettings(kafka_bootstrap=outside))


def test_an_unknown_user_is_refused_with_the_known_ones() -> None:
    with pytest.raises(TopicsError, match="no such user: root; there are: pipeline, schema-registry"):
        broker_access.secure(KafkaSettings(kafka_bootstrap="127.0.0.1:1"), {"root": "x"})
